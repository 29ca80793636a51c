"""What the number formats of translating are good for, and where they are refused."""

import pytest
import torch

from nmt.build.model import build_model
from nmt.build.saved import build_translator, check_search_precision, search_options
from nmt.config import Config
from nmt.errors import ConfigError
from nmt.text.tokenizer import train_tokenizer

CUDA = torch.device("cuda:1")
FILES = {"src": "none", "tgt": "none"}


@pytest.fixture(scope="module")
def translators():
    """One model in each precision of the CPU."""
    corpus = ["ba de ki mo", "ki mo lu", "ra ba de", "lu lu ra"] * 3
    tokenizer = train_tokenizer(corpus, kind="bpe", vocab_size=20)
    config = Config.model_validate(
        {
            "run_dir": "none",
            "src_lang": "xx",
            "tgt_lang": "yy",
            "data": {"train": FILES, "valid": FILES},
            "model": {
                "embed_dim": 10,
                "encoder": {"hidden_dim": 9},
                "decoder": {"hidden_dim": 12},
                "attention": {"key_dim": 7},
            },
        }
    )
    model = build_model(config, len(tokenizer), len(tokenizer))
    tokenizers = type("Tokenizers", (), {"src": tokenizer, "tgt": tokenizer})
    return {
        precision: build_translator(
            config,
            model,
            tokenizers,
            torch.device("cpu"),
            precision,
            search_options(config, max_length=6),
        )
        for precision in ("fp32", "bf16", "int8")
    }


def test_int8_is_refused_off_the_cpu():
    with pytest.raises(
        ConfigError, match=r"^precision: int8 is for the CPU, but the device is cud"
    ):
        check_search_precision("int8", CUDA)
    check_search_precision("int8", torch.device("cpu"))
    check_search_precision("fp16", CUDA)


def test_fp16_is_refused_on_the_cpu():
    with pytest.raises(ConfigError, match=r"^precision: fp16 needs a CUDA device"):
        check_search_precision("fp16", torch.device("cpu"))


def test_int8_is_refused_for_scoring(translators):
    with pytest.raises(ConfigError, match="int8 is for translating; score with fp32 or bf16"):
        translators["int8"].score([("ba de", "ki")])


def test_each_precision_translates(translators):
    for translator in translators.values():
        [translation] = translator.translate(["ba de ki"])
        assert translation.tokens[-1] == "</s>"
        assert translation.score < 0


def test_int8_aligns_with_the_model_itself(translators):
    [translation] = translators["int8"].translate(["ba de ki"])
    [found] = translators["int8"].attend(translation)
    [exact] = translators["fp32"].attend(translation)
    assert found.token_log_probs == exact.token_log_probs
    assert (found.weights == exact.weights).all()

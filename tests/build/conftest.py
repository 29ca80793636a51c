"""A small corpus and its config; and a model that is saved as a run saves it, but not trained."""

import pytest
import torch

from nmt.build.data import build_tokenizers
from nmt.build.model import build_model
from nmt.config import load_config, to_yaml
from nmt.training.checkpoint import write_checkpoint

CONFIG = """\
run_dir: run
src_lang: de
tgt_lang: en
data:
  train: {src: train.de, tgt: train.en}
  valid: {src: valid.de, tgt: valid.en}
tokenizer: {kind: unigram, vocab_size: 34}
model:
  embed_dim: 6
  encoder: {hidden_dim: 5}
  decoder: {hidden_dim: 8}
  attention: {key_dim: 7}
"""
GERMAN = ["der hund sieht die katze", "die maus jagt die kuh", "der hund jagt den kater"]
ENGLISH = ["the dog sees the cat", "the mouse hunts the cow", "the dog hunts the tomcat"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for language, sentences in (("de", GERMAN), ("en", ENGLISH)):
        for name, times in (("train", 10), ("valid", 1)):
            text = "".join(sentence + "\n" for sentence in sentences * times)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def config_of(corpus, monkeypatch):
    """The config with overrides; its files are in the current folder."""
    monkeypatch.chdir(corpus)
    return lambda *overrides: load_config(str(corpus / "config.yaml"), overrides)


@pytest.fixture
def saved(config_of, corpus, tmp_path, monkeypatch):
    """Saves a fresh model at a step of a run in `tmp_path`, and gives the model."""

    def save(run_dir="run", step=1, seed=1, overrides=()):
        monkeypatch.chdir(corpus)
        config = config_of(*overrides)
        home = tmp_path / run_dir
        home.mkdir(exist_ok=True)
        tokenizers = build_tokenizers(config, home / "tokenizer", lambda message: None)
        torch.manual_seed(seed)
        model = build_model(config, len(tokenizers.src), len(tokenizers.tgt)).eval()
        weights = dict(model.named_parameters())
        write_checkpoint(home, step, weights, {}, {"tokenizers": tokenizers.hashes})
        (home / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        return model

    return save

"""F12, F13, F15, F16, F18 and F19: what stands in the lines of a text, and tokenizers of it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nmt as package
from nmt.data.store import TokenStore
from nmt.text.tokenizer import Tokenizer

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
ONE_STEP = ["training.max_steps=1", "training.warmup_steps=0", "validation.every=1"]
ONE_STEP += ["decoding.max_length_ratio=0.1"]
COMMAND = [sys.executable, "-m", "nmt"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def set_options(settings):
    return [arg for setting in settings for arg in ("--set", setting)]


@pytest.fixture
def check(nmt, tiny, write):
    write("unused", "")
    return lambda *settings: nmt("check", "-c", tiny.config, *set_options(settings))


@pytest.fixture
def train(nmt, tiny, write):
    """One step of training in ./run."""
    write("unused", "")
    return lambda *settings: nmt("train", "-c", tiny.config, *set_options([*ONE_STEP, *settings]))


@pytest.fixture
def train_tokenizer(nmt, tiny, write):
    """Trains the tokenizer of ./run."""
    write("unused", "")
    return lambda *settings: nmt("tokenizer", "train", "-c", tiny.config, *set_options(settings))


@pytest.fixture
def extended(tiny, write):
    """Writes the training text with a pair more, and gives the settings to use it."""

    def write_files(src, tgt):
        settings = []
        for side, suffix, line in (("src", "ko", src), ("tgt", "en", tgt)):
            write(
                f"my.{suffix}",
                "".join(f"{line}\n" for line in [*tiny.lines(f"train.{suffix}"), line]),
            )
            settings.append(f"data.train.{side}=my.{suffix}")
        return settings

    return write_files


def unknown_shares(text):
    """File → share of unknown tokens, from the lines of `nmt check`."""
    rows = [line.partition(": ") for line in text.split("\n") if line.endswith(" are unknown")]
    return {name: float(share.split("%")[0]) for name, _, share in rows}


def test_f12_check_says_how_much_is_unknown_and_recommends_bytes(check, tiny, write):
    names = [tiny.path(name) for name in ("train.ko", "train.en", "valid.ko")]
    write("valid.en", "".join(f"{line} 漢\n" for line in tiny.lines("valid.en")))
    clean = check()
    assert unknown_shares(clean.out) == dict.fromkeys([*names, tiny.path("valid.en")], 0.0)
    assert "warning" not in clean.err
    ended = check("data.valid.tgt=valid.en")
    shares = unknown_shares(ended.out)
    assert shares.pop("valid.en") > 1
    assert shares == dict.fromkeys(names, 0.0)
    [warning] = [line for line in ended.err.split("\n") if line.startswith("warning: ")]
    assert warning.startswith("warning: valid.en: 20 of ")
    assert warning.endswith(
        " tokens are unknown (the first is in line 1); a tokenizer trained with "
        "tokenizer.byte_fallback: true spells what it does not know"
    )
    spelled = check(
        "data.valid.tgt=valid.en", "tokenizer.byte_fallback=true", "tokenizer.vocab_size=320"
    )
    assert unknown_shares(spelled.out)["valid.en"] == 0
    assert "unknown" not in spelled.err


def test_f12_eval_of_a_model_says_how_much_is_unknown(nmt, tiny, write):
    write("src", "".join(f"{line}\n" for line in [*tiny.lines("test.ko"), "漢字 밥을 漢字"]))
    write("ref", "".join(f"{line}\n" for line in [*tiny.lines("test.en"), "rice"]))
    options = ["eval", "-m", tiny.run, "--src", "src", "--ref", "ref", "--beam-size", "1"]
    ended = nmt(*options)
    assert ended.code == 0
    warning, rest = ended.err.split("\n")
    assert warning.startswith("warning: src: 2 of ")
    assert "(the first is in line 31); a tokenizer trained with tokenizer.byte_f" in warning
    assert rest == ""
    shares = json.loads(nmt(*options, "--json").out)["unknown_tokens"]
    assert 0 < shares["src"] < 0.1
    assert shares["ref"] == 0
    assert f"\nunknown tokens: {shares['src']:.2%} of src, 0.00% of ref\n" in ended.out


SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<en>", "<0x0A>", "▁", "|||"]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word", "char"])
def test_f13_special_symbols_in_the_text_are_text(train_tokenizer, nmt, extended, kind):
    typed = " ".join(SPECIAL)
    size = 400 if kind == "unigram" else 340
    settings = [f"tokenizer.kind={kind}", f"tokenizer.vocab_size={size}"]
    settings += ["tokenizer.byte_fallback=true", "tokenizer.vocab_size_mode=at_most"]
    trained = train_tokenizer(*extended(typed, typed), *settings)
    assert trained.code == 0, trained.err
    tokenizer = Tokenizer.load(Path("run/tokenizer/shared.model"))
    [token_ids] = tokenizer.encode([typed])
    assert not {0, 1, 2, 3} & set(token_ids)
    assert tokenizer.decode(token_ids).split() == typed.replace("▁", " ").split()


def test_f13_special_symbols_in_the_source_steer_nothing(nmt, tiny):
    text = "".join(f"{symbol} {SENTENCE}\n" for symbol in SPECIAL)
    ended = nmt("translate", "-m", tiny.run, stdin=f"{SENTENCE}\n{text}{SENTENCE}\n")
    assert ended.code == 0
    assert len(ended.lines) == len(SPECIAL) + 2
    assert ended.lines[0] == ended.lines[-1] == TRANSLATION
    translator = package.load(tiny.run)
    for symbol in SPECIAL:
        segmented = translator.src_tokenizer.segment(f"{symbol} {SENTENCE}")
        assert not {0, 2, 3} & set(segmented.token_ids)


@pytest.mark.parametrize("text", ["", "\n", "\n \n\u3000\n"])
def test_f15_a_corpus_without_text_is_refused(train, write, text):
    write("none", text)
    ended = train("data.train.src=none", "data.train.tgt=none")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        "error: none with none: has no text for the tokenizer to learn from; is it empty?\n"
    )


@pytest.mark.parametrize("part", ["train", "valid"])
def test_f15_a_corpus_of_which_nothing_is_left_says_which_filter_did_it(train, tiny, write, part):
    write("my.ko", "\n나는\n" + f"{SENTENCE} " * 40 + "\n")
    write("my.en", "I\n\nI\n")
    settings = [f"data.{part}.src=my.ko", f"data.{part}.tgt=my.en"]
    ended = train(*settings, "tokenizer.vocab_size_mode=at_most")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.split("\n")[-2] == (
        f"error: {part}: no sentence pair is left: 0 of 3 pairs kept; dropped 1 with an empty "
        "source (first at line 1), 1 with an empty target (first at line 2), 1 too long (first at "
        "line 3)"
    )


def test_f15_a_corpus_of_ten_pairs_trains_and_none_of_them_is_lost(train, tiny, write):
    for suffix in ("ko", "en"):
        write(f"my.{suffix}", "".join(f"{line}\n" for line in tiny.lines(f"train.{suffix}")[:10]))
    settings = ["data.train.src=my.ko", "data.train.tgt=my.en", "training.batch_tokens=100000"]
    ended = train(*settings, "tokenizer.vocab_size_mode=at_most", "training.max_steps=2")
    assert ended.code == 0, ended.err
    assert "train data: 10 of 10 pairs kept\n" in ended.err
    assert package.load("run").translate([SENTENCE])[0].text is not None


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word"])
def test_f16_too_large_a_vocabulary_is_refused_or_lowered(train, train_tokenizer, tiny, kind):
    settings = [f"tokenizer.kind={kind}", "tokenizer.vocab_size=9000"]
    refused = train_tokenizer(*settings)
    assert (refused.code, refused.out) == (2, "")
    start = "error: tokenizer.vocab_size: is 9000, but "
    assert refused.err.startswith(start)
    largest = int(refused.err.split(" allows at most ")[1].split(" ")[0])
    assert refused.err.endswith(f" allows at most {largest} pieces; lower it\n")
    trained = train(*settings, "tokenizer.vocab_size_mode=at_most")
    assert trained.code == 0, trained.err
    assert f"tokenizer: {kind}, {largest:,} pieces, trained and saved as " in trained.err
    translator = package.load("run")
    assert len(translator.tgt_tokenizer) == largest
    assert translator.model.decoder.output_layer.out_features == largest


def test_f16_too_small_a_vocabulary_is_refused_with_the_smallest(train_tokenizer):
    for mode in ("exact", "at_most"):
        ended = train_tokenizer("tokenizer.vocab_size=9", f"tokenizer.vocab_size_mode={mode}")
        assert ended.code == 2
        assert " needs at least " in ended.err
        smallest = ended.err.split(" needs at least ")[1].split(" ")[0]
        assert train_tokenizer(f"tokenizer.vocab_size={smallest}").code == 0
        Path("run/tokenizer/shared.model").unlink()


def test_f16_what_was_trained_with_at_most_is_used_again(train_tokenizer):
    at_most = "tokenizer.vocab_size_mode=at_most"
    assert train_tokenizer("tokenizer.vocab_size=9000", at_most).code == 0
    again = train_tokenizer("tokenizer.vocab_size=9000", at_most)
    assert (again.code, again.err) == (0, "tokenizers are in run/tokenizer\n")
    assert train_tokenizer("tokenizer.vocab_size=9000").code == 2
    assert train_tokenizer("tokenizer.vocab_size=60", at_most).code == 2


@pytest.fixture
def learning(tiny, write, tmp_path):
    """`nmt tokenizer train` on much text, in a process group of its own; and the learner in it."""
    draw, letters = random.Random(1), "abcdefghijklmnopqrstuvwxyz "
    write("noise", "".join("".join(draw.choices(letters, k=100)) + "\n" for _ in range(40_000)))
    (tmp_path / "temporary").mkdir()
    settings = ["data.train.src=noise", "data.train.tgt=noise", "tokenizer.vocab_size=8000"]
    program = subprocess.Popen(
        [*COMMAND, "tokenizer", "train", "-c", tiny.config, *set_options(settings)],
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
        start_new_session=True,
    )
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    while not (found := children.read_text().split()):
        time.sleep(0.05)
    time.sleep(2)  # until SentencePiece is at work
    yield program, int(found[0])
    program.kill()
    program.wait()


def is_running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@linux
@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_f18_ctrl_c_ends_tokenizer_training_at_once(learning, tmp_path, whole_group):
    program, learner = learning
    assert is_running(learner)
    began = time.monotonic()
    (os.killpg if whole_group else os.kill)(program.pid, signal.SIGINT)
    _, err = program.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert (program.returncode, err) == (130, b"error: interrupted\n")
    assert not is_running(learner)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "run" / "tokenizer").exists()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_f18_a_killed_command_leaves_no_learner_behind(learning, number):
    program, learner = learning
    program.send_signal(number)
    program.wait(timeout=20)
    for _ in range(50):
        if not is_running(learner):
            break
        time.sleep(0.1)
    assert not is_running(learner)


VERBATIM = ["NA", "null", "nan", "None", "007", "1e5", "1_000", "TRUE", "no", "~", "#N/A", "0x1F"]


@pytest.mark.slow
def test_f19_what_a_table_reader_would_change_comes_out_verbatim(nmt, tiny, write):
    write("words", "".join(f"{word}\n" for word in VERBATIM * 4))
    files = [f"data.{part}.{side}=words" for part in ("train", "valid") for side in ("src", "tgt")]
    settings = ["tokenizer.kind=word", f"tokenizer.vocab_size={4 + len(VERBATIM)}"]
    settings += ["training.learning_rate=0.01"]
    trained = nmt("train", "-c", tiny.config, *set_options([*files, *settings]))
    assert trained.code == 0, trained.err
    tokenizer = Tokenizer.load(Path("run/tokenizer/shared.model"))
    vocabulary = set(tokenizer.tokens(range(4, len(tokenizer))))
    assert vocabulary == {f"▁{word}" for word in VERBATIM}
    ended = nmt("translate", "-m", "run", "-i", "words")
    assert ended.lines == VERBATIM * 4


def test_f19_a_tab_is_a_space_and_separates_no_columns(train, write):
    line = "NA\tnull\t007 1e5"
    for name in ("my.ko", "my.en"):
        write(name, f'{line}\n"a\n,b"\n')
    settings = ["data.train.src=my.ko", "data.train.tgt=my.en", "data.max_length_ratio=null"]
    ended = train(*settings, "tokenizer.vocab_size_mode=at_most", "tokenizer.sampling=0.1")
    assert ended.code == 0, ended.err
    store = TokenStore(Path("run/data/train"))
    assert [store.text("src", i) for i in range(3)] == [line, '"a', ',b"']
    tokenizer = Tokenizer.load(Path("run/tokenizer/shared.model"))
    [token_ids] = tokenizer.encode([line])
    assert tokenizer.decode(token_ids) == "NA null 007 1e5"

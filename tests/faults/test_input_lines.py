"""F1 to F10: the lines of a text, their ends and their bytes, in training and in translation."""

import json
import unicodedata
from pathlib import Path

import pytest

import nmt as package
from nmt.data.store import SIDES, TokenStore
from nmt.text.tokenizer import Tokenizer

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
OTHER, OTHER_TRANSLATION = "지우는 물을 보았다", "Zoé saw water"
LINE_BREAKS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
ONE_STEP = ["training.max_steps=1", "training.warmup_steps=0", "validation.every=1"]
ONE_STEP += ["decoding.max_length_ratio=0.1"]


def set_options(settings):
    return [arg for setting in settings for arg in ("--set", setting)]


@pytest.fixture
def corpus(tiny, write):
    """Writes the text of a part with some lines replaced, and gives the settings to use it."""

    def write_files(src=None, tgt=None, *, part="train", end=b"\n", start=b""):
        settings = []
        for side, suffix, changes in (("src", "ko", src), ("tgt", "en", tgt)):
            lines = [line.encode() for line in tiny.lines(f"{part}.{suffix}")]
            for number, line in (changes or {}).items():
                lines[number - 1] = line
            write(f"my.{suffix}", start + b"".join(line + end for line in lines))
            settings.append(f"data.{part}.{side}=my.{suffix}")
        return settings

    return write_files


@pytest.fixture
def check(nmt, tiny, write):
    """`nmt check` with the tokenizer of the trained run."""
    write("unused", "")
    return lambda *settings: nmt(
        "check", "-c", tiny.config, *set_options([f"run_dir={tiny.run}", *settings])
    )


@pytest.fixture
def train(nmt, tiny, write):
    """One step of training in ./run."""
    write("unused", "")
    return lambda *settings, resume=False: nmt(
        *("train", "-c", tiny.config, *set_options([*ONE_STEP, *settings])),
        *(["--resume"] if resume else []),
    )


@pytest.fixture
def translate(nmt, tiny):
    return lambda text, *options: nmt("translate", "-m", tiny.run, *options, stdin=text)


def stored_pairs():
    """Line number → the pair as the run in ./run has stored it."""
    store = TokenStore(Path("run/data/train"))
    tokenizer = Tokenizer.load(Path("run/tokenizer/shared.model"))
    return {
        int(line): tuple(tokenizer.decode(store.token_ids(side, i).tolist()) for side in SIDES)
        for i, line in enumerate(store.lines)
    }


def corpus_pairs(tiny):
    """Line number → the pair as it stands in the files."""
    pairs = zip(tiny.lines("train.ko"), tiny.lines("train.en"), strict=True)
    return dict(enumerate(pairs, 1))


def test_f01_an_empty_line_drops_its_pair_and_shifts_no_other(train, corpus, tiny):
    ended = train(*corpus(src={3: b"", 77: b" \t"}, tgt={5: "\u3000".encode()}))
    assert ended.code == 0, ended.err
    assert (
        "train data: 197 of 200 pairs kept; dropped 2 with an empty source (first at line 3), "
        "1 with an empty target (first at line 5)\n"
    ) in ended.err
    expected = corpus_pairs(tiny)
    for line in (3, 5, 77):
        del expected[line]
    assert stored_pairs() == expected


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u3000", "\xa0", "\u2028", "\r"])
def test_f02_a_blank_line_is_translated_to_an_empty_line(translate, blank):
    ended = translate(f"{blank}\n{SENTENCE}\n{blank}\n{blank}\n{OTHER}\n")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == ["", TRANSLATION, "", "", OTHER_TRANSLATION]


def test_f02_a_blank_line_has_one_empty_hypothesis_whatever_n_is(translate):
    ended = translate(f"{SENTENCE}\n \n", "--beam-size", "3", "--n-best", "3")
    assert [line.split(" ||| ")[0] for line in ended.lines] == ["1", "1", "1", "2"]
    assert ended.lines[3] == "2 |||  ||| 0.000000"


def test_f03_unequal_counts_are_refused_before_anything_is_trained(train, tiny, write):
    lines = tiny.lines("train.en")
    del lines[119]
    write("my.en", "".join(f"{line}\n" for line in lines))
    ended = train("data.train.tgt=my.en")
    assert (ended.code, ended.out) == (3, "")
    message, shifted = ended.err.rstrip().rsplit(" lines look shifted from ", 1)
    assert message == f"error: {tiny.path('train.ko')} has 200 lines but my.en has 199;"
    assert abs(int(shifted.split(" ")[0]) - 120) <= 5
    assert not Path("run/tokenizer").exists()


@pytest.mark.parametrize("side", ["src", "tgt"])
@pytest.mark.parametrize("extra", ["one more\n", "\n", "one more"])
def test_f04_one_extra_line_on_either_side_is_refused(check, tiny, write, side, extra):
    suffix, part = {"src": "ko", "tgt": "en"}[side], f"data.train.{side}"
    text = Path(tiny.path(f"train.{suffix}")).read_text(encoding="utf-8")
    write("my", text + extra)
    ended = check(f"{part}=my")
    assert (ended.code, ended.out) == (3, "")
    other = tiny.path({"src": "train.en", "tgt": "train.ko"}[side])
    files = (
        ["my has 201 lines", f"{other} has 200"]
        if side == "src"
        else [f"{other} has 200 lines", "my has 201"]
    )
    assert ended.err.startswith(f"error: {' but '.join(files)}; ")


def test_f04_a_missing_last_newline_is_no_missing_line(check, translate, tiny, write):
    write("my", Path(tiny.path("train.ko")).read_bytes().removesuffix(b"\n"))
    ended = check("data.train.src=my")
    assert ended.code == 0
    assert "train data: 200 of 200 pairs kept\n" in ended.err
    for text, count in ((f"{OTHER}\n{OTHER}", 2), (f"{OTHER}\n" * 2, 2), (f"{OTHER}\n\n\n", 3)):
        assert len(translate(text).lines) == count


BAD = {4: b"na\xffive", 9: b"rice\xed\xa0\x80"}


@pytest.mark.parametrize("part", ["train", "valid"])
def test_f05_invalid_utf8_is_refused_with_file_line_and_byte(train, corpus, part):
    ended = train(*corpus(tgt=BAD, part=part))
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.split("\n")[-2].startswith(
        "error: my.en:4: byte 3 of the line is not valid UTF-8; convert the file to UTF-8"
    )


def test_f05_with_replace_its_bytes_are_replaced_and_the_lines_counted(train, corpus):
    bad_src = {1: b"\xff" + SENTENCE.encode()}
    ended = train(*corpus(src=bad_src, tgt=BAD), "data.encoding_errors=replace")
    assert ended.code == 0, ended.err
    assert "train data: 200 of 200 pairs kept\n" in ended.err
    for name, found in (("my.ko", "1 (the first is line 1)"), ("my.en", "2 (the first is line 4)")):
        assert (
            f"warning: {name}: lines that are not valid UTF-8: {found}; their bad bytes were read "
            "as U+FFFD\n"
        ) in ended.err
        assert f"{name}: lines that are not" in Path("run/log.txt").read_text(encoding="utf-8")
    pairs = stored_pairs()
    assert (pairs[1][0], pairs[4][1], pairs[9][1]) == (SENTENCE, "na ive", "rice")


def test_f05_with_skip_its_pair_is_dropped_and_counted(train, corpus, tiny):
    ended = train(*corpus(src={1: b"\xff", 9: b"\xff"}, tgt=BAD), "data.encoding_errors=skip")
    assert ended.code == 0, ended.err
    assert (
        "train data: 197 of 200 pairs kept; dropped 3 not valid UTF-8 (first at line 1)\n"
    ) in ended.err
    expected = corpus_pairs(tiny)
    for line in (1, 4, 9):
        del expected[line]
    assert stored_pairs() == expected


@pytest.mark.parametrize(("policy", "kept"), [("replace", "20"), ("skip", "18")])
def test_f05_validation_text_is_read_in_the_same_way(train, corpus, policy, kept):
    ended = train(*corpus(tgt=BAD, part="valid"), f"data.encoding_errors={policy}")
    assert ended.code == 0, ended.err
    assert f"valid data: {kept} of 20 pairs kept" in ended.err
    assert "warning: my.en: lines that are not valid UTF-8: 2 (the first is line 4)" in ended.err


def test_f05_a_run_is_not_resumed_with_another_policy(train, corpus):
    settings = corpus(tgt=BAD)
    assert train(*settings, "data.encoding_errors=skip").code == 0
    ended = train(*settings, "data.encoding_errors=replace", resume=True)
    assert ended.code == 2
    assert "data.encoding_errors: skip -> replace" in ended.err


def test_f05_translation_replaces_bad_bytes_and_warns_once(translate):
    ended = translate(b"\xff\n" + f"{OTHER}\n".encode() + b"\xed\xa0\x80\xf0\x9f\n")
    assert ended.code == 0
    assert len(ended.lines) == 3
    assert ended.lines[1] == OTHER_TRANSLATION
    assert ended.err == (
        "warning: standard input: lines that are not valid UTF-8: 2 (the first is line 1); their "
        "bad bytes were read as U+FFFD\n"
    )


def test_f06_nul_characters_are_counted_and_read_as_spaces(check, train, corpus, tiny):
    lines = tiny.lines("train.ko")
    changes = {n: lines[n - 1].replace(" ", "\0").encode() for n in (7, 30)}
    changes[30] += "\0漢字".encode()
    settings = corpus(src=changes, tgt={8: b"rice\0"})
    for command in (check, train):
        ended = command(*settings)
        assert ended.code == 0, ended.err
        assert "train data: 200 of 200 pairs kept\n" in ended.err
        for name, found in (("my.ko", "2 (the first is line 7)"), ("my.en", "1 (the first is li")):
            assert f"warning: {name}: lines with NUL characters: {found}" in ended.err
    pairs = stored_pairs()
    assert pairs[7][0] == lines[6]
    assert pairs[30][0] == f"{lines[29]} 漢字"  # the tokenizer has learned from the line too


def test_f06_a_nul_ends_no_line_of_a_translation(translate):
    ended = translate(f"{SENTENCE}\0\n\0\n{OTHER}\n".replace(" ", "\0"))
    assert ended.lines == [TRANSLATION, "", OTHER_TRANSLATION]


BOM = "\ufeff".encode()


def test_f07_a_byte_order_mark_is_no_part_of_the_text(train, corpus, tiny):
    ended = train(*corpus(start=BOM), "tokenizer.sampling=0.1")  # which keeps the text as it is
    assert ended.code == 0, ended.err
    store = TokenStore(Path("run/data/train"))
    assert (store.text("src", 0), store.text("tgt", 0)) == corpus_pairs(tiny)[1]


@pytest.mark.parametrize("stream", ["file", "stdin"])
def test_f07_a_byte_order_mark_is_dropped_at_the_start_only(translate, write, stream):
    text = BOM + f"{OTHER}\n".encode() + BOM + f"{OTHER}\n".encode()
    write("in", text)
    options = ["--format", "jsonl", *(["-i", "in"] if stream == "file" else [])]
    records = [json.loads(line) for line in translate(text, *options).lines]
    assert [record["src"] for record in records] == [OTHER, f"\ufeff{OTHER}"]


def test_f07_a_config_may_start_with_a_byte_order_mark(nmt, tiny, write):
    write("c.yaml", BOM + Path(tiny.config).read_bytes())
    ended = nmt("check", "-c", "c.yaml", "--set", f"run_dir={tiny.run}")
    assert ended.code == 0, ended.err


def test_f08_windows_line_ends_are_dropped_and_other_returns_are_spaces(train, corpus, tiny):
    lines = tiny.lines("train.ko")
    changes = {n: lines[n - 1].replace(" ", "\r").encode() for n in (11, 12, 13)}
    ended = train(*corpus(src=changes, end=b"\r\n"), "tokenizer.sampling=0.1")
    assert ended.code == 0, ended.err
    assert "train data: 200 of 200 pairs kept\n" in ended.err
    assert (
        "warning: my.ko: lines with a carriage return inside: 3 (the first is line 11); each was "
        "read as a space\n"
    ) in ended.err
    assert "my.en: lines with a carriage return" not in ended.err
    store = TokenStore(Path("run/data/train"))
    texts = [(store.text("src", i), store.text("tgt", i)) for i in range(200)]
    assert texts == list(corpus_pairs(tiny).values())


def test_f08_a_return_splits_no_line_of_a_translation(translate):
    ended = translate(f"{SENTENCE}\r\n\r\n{OTHER}\r\n".replace(" ", "\r"))
    assert ended.lines == [TRANSLATION, "", OTHER_TRANSLATION]


def test_f09_strange_line_breaks_split_no_line_of_a_corpus(train, corpus, tiny):
    lines = tiny.lines("train.ko")
    changes = {
        n: lines[n - 1].replace(" ", mark).encode() for n, mark in enumerate(LINE_BREAKS, 50)
    }
    ended = train(*corpus(src=changes, tgt={60: b"a\x0bb"}))
    assert ended.code == 0, ended.err
    assert "train data: 200 of 200 pairs kept\n" in ended.err
    assert stored_pairs() == corpus_pairs(tiny) | {60: (lines[59], "a b")}


@pytest.mark.parametrize("mark", LINE_BREAKS)
def test_f09_a_strange_line_break_splits_no_line_of_a_translation(translate, mark):
    ended = translate(f"{SENTENCE}\n{mark}\n{OTHER}{mark}\n".replace(" ", mark))
    assert ended.lines == [TRANSLATION, "", OTHER_TRANSLATION]


def test_f09_what_bytes_decode_to_stays_on_its_line(nmt, tiny, write):
    write("unused", "")
    byte_fallback = set_options(["tokenizer.byte_fallback=true", "tokenizer.vocab_size=320"])
    trained = nmt("train", "-c", tiny.config, *byte_fallback, *set_options(ONE_STEP))
    assert trained.code == 0, trained.err
    for character in ["\n", "\r", *LINE_BREAKS]:
        token_ids = " ".join(str(4 + byte) for byte in f"a{character}b".encode())
        ended = nmt("tokenizer", "decode", "-m", "run", "--side", "tgt", stdin=f"{token_ids}\n")
        assert ended.out == "a b\n"


def test_f10_a_lone_surrogate_is_translated_as_an_unknown_character(tiny):
    translator = package.load(tiny.run)
    found = translator.translate([f"{OTHER} \ud800", "\udfff", OTHER])
    assert found[2].text == OTHER_TRANSLATION
    for translation in found:
        translation.text.encode("utf-8")  # raises where a surrogate has come through


def test_f10_two_spellings_of_a_character_are_one(translate):
    other_spelling = unicodedata.normalize("NFD", f"{SENTENCE}\n{OTHER}\n")
    assert other_spelling != f"{SENTENCE}\n{OTHER}\n"
    assert translate(other_spelling).lines == [TRANSLATION, OTHER_TRANSLATION]
    assert translate(f"{SENTENCE}\n".replace(" ", "\u3000")).lines == [TRANSLATION]

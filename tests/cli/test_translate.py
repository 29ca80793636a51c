"""`nmt translate`: one line in, one line out, whatever the line is."""

import gzip
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nmt as package

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
OTHER, OTHER_TRANSLATION = "지우는 물을 보았다", "Zoé saw water"


@pytest.fixture
def translate(nmt, tiny):
    """Translates text or bytes with the tiny model."""

    def run(text="", *options):
        return nmt("translate", "--model", tiny.run, *options, stdin=text)

    return run


def test_line_n_of_the_output_translates_line_n_of_the_input(translate, tiny):
    ended = translate("", "--input", tiny.path("test.ko"))
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == tiny.lines("test.en")


@pytest.mark.parametrize(
    "blank",
    [
        "",
        " ",
        "\t",
        "\u3000",
        "\u00a0",
        "\u2028",
        "\u2029",
        "\u0085",
        "\r",
        "\v\f",
        "\x1c\x1f",
        "\0",
    ],
    ids=ascii,
)
def test_a_blank_line_stays_blank_in_its_place(translate, blank):
    ended = translate(f"{SENTENCE}\n{blank}\n{OTHER}\n")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == [TRANSLATION, "", OTHER_TRANSLATION]


@pytest.mark.parametrize(
    "text",
    [
        f"{SENTENCE}\r\n{OTHER}\r\n",
        f"\ufeff{SENTENCE}\n{OTHER}\n",
        f"{SENTENCE}\n{OTHER}",
        f"\ufeff{SENTENCE}\r\n{OTHER}",
        "어제\u2028나는 밥을\u2029먹었다\n지우는\u0085물을 보았다\n",
        "어제 나는\r밥을\v먹었다\n지우는\f물을\x1d보았다\n",
        "어제\0나는 밥을 먹었다\n지우는 물을\0보았다\n",
    ],
    ids=["crlf", "bom", "no-final-newline", "bom-crlf", "u2028", "lone-cr", "nul"],
)
def test_only_a_newline_ends_a_line(translate, text):
    ended = translate(text)
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == [TRANSLATION, OTHER_TRANSLATION]


@pytest.mark.parametrize("options", [(), ("--format", "jsonl"), ("--n-best", "3")], ids=str)
def test_nothing_in_nothing_out(translate, options):
    ended = translate("", *options)
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_invalid_utf8_is_replaced_and_reported_once(translate):
    bad = b"\xff\n" + SENTENCE.encode() + b"\n\xed\xa0\x80 a \xc3\n"
    ended = translate(bad, "--format", "jsonl")
    assert ended.code == 0
    assert ended.err == (
        "warning: standard input: lines that are not valid UTF-8: 2 (the first is line 1); "
        "their bad bytes were read as U+FFFD\n"
    )
    assert [json.loads(line)["src"] for line in ended.lines] == [
        "\ufffd",
        SENTENCE,
        "\ufffd\ufffd\ufffd a \ufffd",
    ]


def test_a_line_of_100_000_characters_is_one_line(translate, tiny):
    long = (f"{SENTENCE} " * 10_000)[:100_000]
    ended = translate(f"{OTHER}\n{long}\n", "--beam-size", "1")
    assert ended.code == 0
    assert ended.err == (
        "warning: standard input: lines with more than 100 tokens: 1 (the first is line 2); they "
        "were translated in pieces\n"
    )
    other, translated = ended.lines
    assert other == OTHER_TRANSLATION
    assert translated.startswith(f"{TRANSLATION} ")
    assert translated.count(TRANSLATION) > 500


ODD = [b"\n", b"\r", b"\0", b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b" ", b"\xc2\x85", b"\x0b"]
ODD += [b"\x1c", b"<s>", b"</s>", b"\xe2\x96\x81", "밥".encode(), SENTENCE.encode(), b"\xf0\x9f"]


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=60) | st.lists(st.sampled_from(ODD), max_size=15).map(b"".join))
def test_any_bytes_give_as_many_lines_as_they_have(translate, data):
    ended = translate(data, "--beam-size", "1")
    assert ended.code == 0
    expected = data.count(b"\n") + (data != b"" and not data.endswith(b"\n"))
    assert len(ended.lines) == expected
    assert not re.search("[\r\v\f\x1c-\x1e\x85\u2028\u2029]", ended.out)
    assert len(translate(data, "--beam-size", "1", "--format", "jsonl").lines) == expected


def test_gzip_is_read(translate, write):
    write("in.gz", gzip.compress(f"{SENTENCE}\n{OTHER}\n".encode()))
    assert translate("", "-i", "in.gz").lines == [TRANSLATION, OTHER_TRANSLATION]


def test_an_output_file_is_complete_or_not_there(translate, write, tmp_path):
    write("out.txt", "old\n")
    write("broken.gz", gzip.compress(f"{SENTENCE}\n".encode() * 50)[:-12])
    ended = translate("", "-i", "broken.gz", "-o", "out.txt", "--buffer", "1")
    assert ended.code == 3
    assert re.fullmatch(r"error: broken\.gz:\d+: cannot be read further: .*\n", ended.err)
    assert (tmp_path / "out.txt").read_text() == "old\n"
    assert {path.name for path in tmp_path.iterdir()} == {"out.txt", "broken.gz"}

    ended = translate(SENTENCE, "-o", "out.txt")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (tmp_path / "out.txt").read_text() == f"{TRANSLATION}\n"


def test_input_and_output_may_be_the_same_file(translate, write, tmp_path):
    write("text", f"{SENTENCE}\n{OTHER}\n")
    assert translate("", "-i", "text", "-o", "text", "--buffer", "1").code == 0
    assert (tmp_path / "text").read_text() == f"{TRANSLATION}\n{OTHER_TRANSLATION}\n"


def test_n_best_text_is_number_text_and_score(translate, tiny):
    ended = translate(f"{SENTENCE}\n\n{OTHER}\n", "--n-best", "3")
    rows = [line.split(" ||| ") for line in ended.lines]
    assert [row[0] for row in rows] == ["1"] * 3 + ["2"] + ["3"] * 3
    assert rows[0][1] == TRANSLATION
    assert rows[3][1:] == ["", "0.000000"]
    assert rows[4][1] == OTHER_TRANSLATION
    for best in (rows[:3], rows[4:]):
        scores = [float(score) for _, _, score in best]
        assert all(re.fullmatch(r"-\d+\.\d{6}", score) for _, _, score in best)
        assert scores == sorted(scores, reverse=True)
    found = package.load(tiny.run, n_best=3).translate([SENTENCE])[0].hypotheses
    assert [row[1] for row in rows[:3]] == [hypothesis.text for hypothesis in found]
    expected = [hypothesis.score for hypothesis in found]
    assert [float(row[2]) for row in rows[:3]] == pytest.approx(expected, abs=1e-4)


def test_jsonl_is_what_the_python_api_gives(translate, tiny):
    sentences = [SENTENCE, "", OTHER, '"\\']
    ended = translate("\n".join(sentences), "--format", "jsonl", "--n-best", "2")
    rows = [json.loads(line) for line in ended.lines]
    translations = package.load(tiny.run, n_best=2).translate(sentences)
    assert [list(row) for row in rows] == [["line", "src", "hypotheses"]] * 4
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    assert [row["src"] for row in rows] == sentences
    for row, translation in zip(rows, translations, strict=True):
        for found, hypothesis in zip(row["hypotheses"], translation.hypotheses, strict=True):
            assert list(found) == ["text", "score", "log_prob", "tokens", "token_log_probs"]
            assert (found["text"], found["tokens"]) == (hypothesis.text, hypothesis.tokens)
            assert found["score"] == pytest.approx(hypothesis.score, abs=1e-4)
            assert found["log_prob"] == pytest.approx(hypothesis.log_prob, abs=1e-4)
            assert found["token_log_probs"] == pytest.approx(hypothesis.token_log_probs, abs=1e-4)


def test_jsonl_scores_are_the_log_probability_over_the_length_penalty(translate):
    for alpha in (0.0, 1.0, 0.6):
        ended = translate(SENTENCE, "--format", "jsonl", "--length-penalty", alpha)
        (hypothesis,) = json.loads(ended.out)["hypotheses"]
        assert hypothesis["text"] == TRANSLATION
        assert hypothesis["tokens"][-1] == "</s>"
        assert len(hypothesis["tokens"]) == len(hypothesis["token_log_probs"])
        assert sum(hypothesis["token_log_probs"]) == pytest.approx(hypothesis["log_prob"])
        penalty = ((5 + len(hypothesis["tokens"])) / 6) ** alpha
        assert hypothesis["score"] == pytest.approx(hypothesis["log_prob"] / penalty)


def test_jsonl_of_a_blank_line_has_one_empty_hypothesis(translate):
    ended = translate(" \n", "--format", "jsonl", "--n-best", "4")
    assert json.loads(ended.out) == {
        "line": 1,
        "src": " ",
        "hypotheses": [
            {"text": "", "score": 0.0, "log_prob": 0.0, "tokens": [], "token_log_probs": []}
        ],
    }


def test_jsonl_holds_no_character_that_is_a_line_end_to_someone(translate):
    ended = translate("a\u2028b\x85c\u2029d\n", "--format", "jsonl")
    assert json.loads(ended.out)["src"] == "a\u2028b\x85c\u2029d"
    assert not re.search("[\x85\u2028\u2029]", ended.out)


@pytest.mark.parametrize(
    "options", [("--batch-tokens", "1"), ("--buffer", "1"), ("--buffer", "7"), ("--n-best", "1")]
)
def test_how_sentences_are_batched_changes_nothing(translate, tiny, options):
    usual = translate("", "-i", tiny.path("valid.ko"), "--batch-tokens", "10000")
    assert translate("", "-i", tiny.path("valid.ko"), *options).out == usual.out


def test_lengths_can_be_limited(translate):
    def num_tokens(*options):
        (line,) = translate(SENTENCE, "--format", "jsonl", *options).lines
        return len(json.loads(line)["hypotheses"][0]["tokens"]) - 1

    assert num_tokens("--max-length", "3") == 3
    assert num_tokens("--min-length", "25") >= 25
    assert 3 < num_tokens() < 25


def test_a_beam_of_one_is_greedy_search(translate, tiny):
    ended = translate(SENTENCE, "--beam-size", "1", "--format", "jsonl")
    (row,) = map(json.loads, ended.lines)
    (greedy,) = package.load(tiny.run, beam_size=1).translate([SENTENCE])
    assert row["hypotheses"][0]["tokens"] == greedy.tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--n-best", "6"), "n-best: must be between 1 and the beam size 5, but is 6; raise "),
        (("--n-best", "0"), "n-best: must be between 1 and the beam size 5, but is 0; raise "),
        (("--max-length", "0"), "max length: must be at least the min length 1, but is 0"),
        (("--length-penalty", "-1"), "length penalty: must be a number from 0 to 10, but is -1.0"),
        (("--batch-tokens", "0"), "batch tokens: must be at least 1, but is 0"),
        (("--output", "."), ".: is a folder, but must be a file"),
        (("--output", "none/x"), "none/x: cannot be written: No such file or directory"),
        (("--precision", "fp16", "--device", "cpu"), "precision: fp16 needs a CUDA device; use "),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_impossible_option_is_refused(translate, write, options, message):
    ended = translate(SENTENCE, *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--buffer", "0"), "--buffer: must be at least 1, but is 0"),
        (("--beam-size", "0"), "--beam-size: must be at least 1, but is 0"),
        (
            ("--beam-size", "2", "--n-best", "3"),
            "--n-best: must be at most the beam size 2, but is 3; raise --beam-size",
        ),
        (("--input", "none"), "none: cannot be read: No such file or directory"),
        (("--input", "."), ".: cannot be read: Is a directory"),
        (("--device", "mps"), "device: must be auto, cpu, cuda or cuda:N, but is mps"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_found_before_the_model_is_read(nmt, write, options, message):
    write("other", "")
    ended = nmt("translate", "--model", "none", *options)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {message}\n")

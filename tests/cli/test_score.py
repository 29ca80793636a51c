"""`nmt score`: the log-probability of given translations."""

import json

import pytest

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"


@pytest.fixture
def score(nmt, tiny):
    def run(src, tgt, *options, stdin=""):
        args = ["score", "--model", tiny.run, "--src", src, "--tgt", tgt, *options]
        return nmt(*args, stdin=stdin)

    return run


def test_a_found_translation_has_the_log_probability_that_search_gave(nmt, tiny, score, write):
    found = nmt("translate", "-m", tiny.run, "-i", tiny.path("test.ko"), "--format", "jsonl")
    best = [json.loads(line)["hypotheses"][0] for line in found.lines]
    write("found", "".join(f"{hypothesis['text']}\n" for hypothesis in best))
    ended = score(tiny.path("test.ko"), "found", "--format", "jsonl")
    assert (ended.code, ended.err) == (0, "")
    rows = [json.loads(line) for line in ended.lines]
    assert [list(row) for row in rows] == [["line", "log_prob", "tokens", "token_log_probs"]] * 30
    assert [row["line"] for row in rows] == list(range(1, 31))
    for row, hypothesis in zip(rows, best, strict=True):
        assert row["tokens"] == hypothesis["tokens"]
        assert row["log_prob"] == pytest.approx(hypothesis["log_prob"], abs=1e-4)
        assert row["token_log_probs"] == pytest.approx(hypothesis["token_log_probs"], abs=1e-4)

    text = score(tiny.path("test.ko"), "found")
    assert [float(line) for line in text.lines] == pytest.approx(
        [row["log_prob"] for row in rows], abs=1e-4
    )


def test_the_true_translation_is_more_probable_than_another(score, write):
    write("s", f"{SENTENCE}\n" * 2)
    write("t", f"{TRANSLATION}\nyou saw flowers today\n")
    true, other = map(float, score("s", "t").lines)
    assert other < true < 0


def test_a_pair_with_a_blank_side_has_no_log_probability(score, write):
    write("s", f"{SENTENCE}\n\n \n{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n{TRANSLATION}\n\t\n\n")
    text = score("s", "t")
    assert (text.code, text.err) == (0, "")
    assert text.lines[1:] == ["", "", ""]
    assert float(text.lines[0]) < 0
    rows = [json.loads(line) for line in score("s", "t", "--format", "jsonl").lines]
    blank = {"log_prob": None, "tokens": [], "token_log_probs": []}
    assert rows[1:] == [{"line": line, **blank} for line in (2, 3, 4)]


def test_empty_files_give_nothing(score, write):
    write("s", "")
    ended = score("s", "s")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_one_side_may_be_standard_input_and_the_result_a_file(score, write, tmp_path):
    write("s", f"{SENTENCE}\n")
    direct = score("s", "-", stdin=TRANSLATION)
    ended = score("s", "-", "-o", "scores", stdin=TRANSLATION)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (tmp_path / "scores").read_text() == direct.out


def test_a_pair_that_is_too_long_is_named(score, write):
    write("s", f"{SENTENCE}\n{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n{TRANSLATION * 500}\n")
    ended = score("s", "t", "-o", "scores")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "error: s:2: the pair has more than 2000 tokens on a side; split it\n"


def test_unequal_numbers_of_lines_are_refused(score, write):
    write("s", f"{SENTENCE}\n{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n")
    ended = score("s", "t", "-o", "scores")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "error: s has 2 lines but t has 1; lines look shifted from 1 on\n"


def test_invalid_utf8_is_refused_with_its_place(score, write):
    write("s", f"{SENTENCE}\n{SENTENCE}\n")
    write("t", f"{TRANSLATION}\nI a\xff\n".encode("latin-1"))
    ended = score("s", "t", "-o", "scores")
    assert ended.code == 3
    assert ended.err == (
        "error: t:2: byte 4 of the line is not valid UTF-8; convert the file to UTF-8 or remove "
        "the line on both sides\n"
    )


def test_both_sides_cannot_be_standard_input(score):
    ended = score("-", "-", stdin=f"{SENTENCE}\n{TRANSLATION}\n")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --src and --tgt: only one can be standard input; name a file\n"


@pytest.mark.parametrize(("src", "tgt"), [("none", "t"), ("t", "none")])
def test_a_missing_file_is_named(score, write, src, tgt):
    write("t", TRANSLATION)
    ended = score(src, tgt)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: none: cannot be read: No such file or directory\n"

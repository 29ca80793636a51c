"""`nmt eval`: scores of a model, or of a file of translations."""

import json

import pytest
import sacrebleu

HYPOTHESES = "the cat sat on the mat .\na dog runs fast !\nno\n"
REFERENCE = "the cat sat on a mat .\nA dog is running fast !\nno\n"
OTHER = "a cat sat on the mat .\na dog runs very fast !\nno way\n"


@pytest.fixture
def files(write):
    write("hyp", HYPOTHESES)
    write("ref", REFERENCE)
    write("other", OTHER)


@pytest.fixture
def scores(nmt):
    """The JSON that `nmt eval --json` prints."""

    def run(*options):
        ended = nmt("eval", "--json", *options)
        assert (ended.code, ended.err) == (0, "")
        return json.loads(ended.out)

    return run


def lines(text):
    return text.split("\n")[:-1]


def test_scores_are_those_of_sacrebleu_with_its_signatures(scores, files):
    report = scores("--hyp", "hyp", "--ref", "ref")
    hypotheses, references = lines(HYPOTHESES), [lines(REFERENCE)]
    assert report["scores"]["BLEU"] == {
        "value": sacrebleu.corpus_bleu(hypotheses, references).score,
        "signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|"
        f"version:{sacrebleu.__version__}",
    }
    assert report["scores"]["chrF2"]["value"] == sacrebleu.corpus_chrf(hypotheses, references).score
    assert report["scores"]["TER"]["value"] == sacrebleu.corpus_ter(hypotheses, references).score
    assert all("version:" in score["signature"] for score in report["scores"].values())
    assert report["num_sentences"] == 3
    assert report["length_of"] == "reference"


def test_the_table_shows_the_same_scores_and_signatures(nmt, scores, files):
    report = scores("--hyp", "hyp", "--ref", "ref")
    ended = nmt("eval", "--hyp", "hyp", "--ref", "ref")
    assert (ended.code, ended.err) == (0, "")
    for line, (name, score) in zip(ended.lines, report["scores"].items(), strict=False):
        assert line.split() == [name, f"{score['value']:.1f}", score["signature"]]
    assert "sentences: 3, empty hypotheses: 0" in ended.out


def test_a_model_is_scored_as_its_translations_are(nmt, tiny, scores, write, tmp_path):
    write("x", "")
    src, ref = tiny.path("test.ko"), tiny.path("test.en")
    of_model = scores("--model", tiny.run, "--src", src, "--ref", ref, "--output", "kept")
    assert of_model.pop("unknown_tokens") == {src: 0.0, ref: 0.0}
    translated = nmt("translate", "-m", tiny.run, "-i", src)
    assert (tmp_path / "kept").read_text(encoding="utf-8") == translated.out
    of_text = scores("--hyp", "kept", "--src", src, "--ref", ref)
    assert of_text.pop("unknown_tokens") == {}  # no tokenizer has read them
    assert of_model == of_text
    assert of_model["scores"]["BLEU"]["value"] == pytest.approx(100)
    assert of_model["length_of"] == "source"


def test_search_options_reach_the_search(nmt, tiny, scores, write, tmp_path):
    write("x", "")
    arguments = ["--model", tiny.run, "--src", tiny.path("test.ko"), "--ref", tiny.path("test.en")]
    for options in (("--length-penalty", "9"), ("--length-penalty", "9", "--beam-size", "2")):
        scores(*arguments, "--output", "kept", *options)
        translated = nmt("translate", "-m", tiny.run, "-i", tiny.path("test.ko"), *options)
        assert (tmp_path / "kept").read_text(encoding="utf-8") == translated.out


def test_several_references_count_together(scores, files):
    report = scores("--hyp", "hyp", "--ref", "ref", "--ref", "other")
    expected = sacrebleu.corpus_bleu(lines(HYPOTHESES), [lines(REFERENCE), lines(OTHER)])
    assert report["scores"]["BLEU"]["value"] == expected.score
    assert report["scores"]["BLEU"]["signature"].startswith("nrefs:2|")


def test_tokenizer_and_case_can_be_chosen(scores, files):
    report = scores("--hyp", "hyp", "--ref", "ref", "--tokenize", "char", "--lowercase")
    expected = sacrebleu.corpus_bleu(
        lines(HYPOTHESES), [lines(REFERENCE)], tokenize="char", lowercase=True
    )
    assert report["scores"]["BLEU"]["value"] == expected.score
    assert "|case:lc|" in report["scores"]["BLEU"]["signature"]
    assert "|tok:char|" in report["scores"]["BLEU"]["signature"]


def test_an_unknown_tokenizer_is_refused_with_the_choices(nmt, files):
    ended = nmt("eval", "--hyp", "hyp", "--ref", "ref", "--tokenize", "moses")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: --tokenize: must be one of 13a, intl, zh, char, none, ja-mecab, ko-mecab, but is "
        "moses\n"
    )


def test_sentences_are_sorted_by_the_length_of_the_source(scores, files, write):
    write("src", "x\n" + "x " * 15 + "\n" + "x " * 12 + "\n")
    report = scores("--hyp", "hyp", "--ref", "ref", "--src", "src")
    assert report["length_of"] == "source"
    assert [(row["low"], row["num_sentences"]) for row in report["by_length"]] == [(1, 1), (11, 2)]


def test_standard_input_can_be_scored(nmt, files):
    ended = nmt("eval", "--hyp", "-", "--ref", "ref", stdin=HYPOTHESES)
    assert ended.out == nmt("eval", "--hyp", "hyp", "--ref", "ref").out


def test_windows_line_ends_and_strange_characters_change_no_count(scores, write):
    write("hyp", HYPOTHESES.replace("\n", "\r\n").replace("cat", "c\u2028at"))
    write("ref", "\ufeff" + REFERENCE.replace("cat", "c\u2028at"))
    assert scores("--hyp", "hyp", "--ref", "ref")["num_sentences"] == 3


def test_invalid_utf8_is_replaced_and_reported(nmt, files, write):
    write("hyp", b"a\xff\nb\nc\xff\n")
    ended = nmt("eval", "--hyp", "hyp", "--ref", "ref")
    assert ended.code == 0
    assert ended.err == (
        "warning: hyp: lines that are not valid UTF-8: 2 (the first is line 1); "
        "their bad bytes were read as U+FFFD\n"
    )


def test_blank_references_are_shown(nmt, files, write):
    write("ref", "a\n\n \n")
    ended = nmt("eval", "--hyp", "hyp", "--ref", "ref")
    assert "empty lines in reference 1: 2 (2, 3)" in ended.out


HINT = "line N of one must belong to line N of the other"


@pytest.mark.parametrize("content", [HYPOTHESES + "one\n", "the cat\n", ""])
def test_unequal_numbers_of_lines_are_refused(nmt, files, write, content):
    write("hyp", content)
    ended = nmt("eval", "--hyp", "hyp", "--ref", "other", "--ref", "ref")
    assert (ended.code, ended.out) == (3, "")
    count = content.count("\n")
    assert ended.err == f"error: hyp has {count} lines but other has 3; {HINT}\n"


def test_an_unequal_number_of_source_lines_is_refused(nmt, files, write):
    write("src", "a\n")
    ended = nmt("eval", "--hyp", "hyp", "--ref", "ref", "--src", "src")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == f"error: hyp has 3 lines but src has 1; {HINT}\n"


def test_unequal_counts_are_found_before_the_model_is_read(nmt, files, write):
    write("src", "a\n")
    ended = nmt("eval", "--model", "none", "--src", "src", "--ref", "ref")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == f"error: src has 1 lines but ref has 3; {HINT}\n"


def test_no_sentences_have_no_score(nmt, write):
    write("empty", "")
    ended = nmt("eval", "--hyp", "empty", "--ref", "empty")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        "error: hypotheses: there are none, so there is no score; is the file empty?\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "eval: give either --model with --src, or --hyp"),
        (
            ["--model", "none", "--src", "hyp", "--hyp", "hyp"],
            "eval: give either --model with --src, or --hyp",
        ),
        (["--model", "none"], "eval: --model needs --src, the text to translate"),
        (["--hyp", "none"], "none: cannot be read: No such file or directory"),
        (["--hyp", "hyp", "--ref", "none"], "none: cannot be read: No such file or directory"),
        (
            ["--hyp", "hyp", "--output", "kept"],
            "--output: says how to translate, but --hyp gives translations; "
            "leave one of the two out",
        ),
        (
            ["--hyp", "hyp", "--beam-size", "3"],
            "--beam-size: says how to translate, but --hyp gives translations; "
            "leave one of the two out",
        ),
        (
            ["--model", "none", "--src", "hyp", "--beam-size", "0"],
            "--beam-size: must be at least 1, but is 0",
        ),
        (
            ["--hyp", "-", "--ref", "-"],
            "--hyp and --ref: only one can be standard input; name a file",
        ),
        (
            ["--model", "none", "--src", "-", "--ref", "-"],
            "--src and --ref: only one can be standard input; name a file",
        ),
    ],
)
def test_a_mistake_is_found_before_the_model_is_read(nmt, files, options, message):
    ended = nmt("eval", "--ref", "ref", *options)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {message}\n")

"""The report: buckets by length, counts of what looks wrong, text and JSON."""

import json
import subprocess
import sys

import pytest
import sacrebleu

import nmt
from nmt.errors import DataError
from nmt.evaluation.metrics import bleu, chrf, ter
from nmt.evaluation.report import Bucket, evaluate

REFERENCE = ["the cat sat on a mat .", "a dog is running fast !", "", "we ate rice this morning"]
OTHER = ["a cat sat on the mat .", "a dog runs fast !", "yes", "this morning we ate rice"]
HYPOTHESES = ["the cat sat on the mat .", "a dog runs fast !", "no", ""]
SOURCES = [" ".join(["x"] * length) for length in (11, 10, 0, 60)]


def sentences_of_lengths(*lengths):
    return [" ".join(f"w{n}" for n in range(length)) for length in lengths]


def test_scores_are_those_of_the_metrics():
    report = evaluate(HYPOTHESES, [REFERENCE, OTHER], tokenize="none", lowercase=True)
    assert report.scores == (
        bleu(HYPOTHESES, [REFERENCE, OTHER], tokenize="none", lowercase=True),
        chrf(HYPOTHESES, [REFERENCE, OTHER], lowercase=True),
        ter(HYPOTHESES, [REFERENCE, OTHER]),
    )
    assert "case:lc" in report.bleu.signature
    assert "tok:none" in report.bleu.signature


def test_empty_lines_are_counted_and_named():
    report = evaluate([*HYPOTHESES, " "], [[*REFERENCE, " "], [*OTHER, "yes"]])
    assert report.num_sentences == 5
    assert report.num_empty_hypotheses == 2
    assert report.empty_references == ((3, 5), ())


def test_length_ratio_is_tokens_of_hypotheses_per_token_of_references():
    assert evaluate(["a b c", "d"], [["a b", "c d e f g h"]]).length_ratio == 4 / 8


def test_length_ratio_takes_the_closest_reference():
    assert evaluate(["a b c"], [["a b c d e f"], ["a b"]]).length_ratio == 3 / 2


def test_buckets_hold_the_lengths_they_say():
    lengths = (0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50, 51, 999)
    report = evaluate(
        ["a"] * len(lengths), [["a"] * len(lengths)], sources=sentences_of_lengths(*lengths)
    )
    found = {bucket.label: bucket.num_sentences for bucket in report.by_length}
    assert found == {"0": 1, "1-10": 2, "11-20": 2, "21-30": 2, "31-40": 2, "41-50": 2, "51+": 2}
    assert report.num_sentences == sum(found.values())


def test_only_buckets_with_sentences_are_there():
    report = evaluate(["a"] * 2, [["a"] * 2], sources=sentences_of_lengths(3, 45))
    assert [(bucket.low, bucket.high) for bucket in report.by_length] == [(1, 10), (41, 50)]


def test_bleu_of_a_bucket_is_corpus_bleu_of_its_sentences():
    sources = sentences_of_lengths(5, 15, 5, 15)
    report = evaluate(HYPOTHESES, [REFERENCE, OTHER], sources=sources, tokenize="char")
    for bucket, rows in zip(report.by_length, [slice(0, 4, 2), slice(1, 4, 2)], strict=True):
        expected = bleu(HYPOTHESES[rows], [REFERENCE[rows], OTHER[rows]], tokenize="char")
        assert bucket.bleu == expected.value
    assert report.by_length[0].bleu != report.by_length[1].bleu


def test_bleu_of_the_only_bucket_is_bleu():
    hypotheses, reference = ["The cat sat on the mat"], ["the CAT sat on a mat"]
    report = evaluate(hypotheses, [reference], lowercase=True)
    assert report.by_length == (Bucket(1, 10, 1, report.bleu.value),)
    assert report.bleu.value > 50


def test_lengths_are_those_of_the_source_else_of_the_first_reference():
    with_sources = evaluate(HYPOTHESES, [REFERENCE, OTHER], sources=SOURCES)
    without = evaluate(HYPOTHESES, [REFERENCE, OTHER])
    assert with_sources.length_of == "source"
    assert [bucket.label for bucket in with_sources.by_length] == ["0", "1-10", "11-20", "51+"]
    assert without.length_of == "reference"
    assert [bucket.label for bucket in without.by_length] == ["0", "1-10"]


def test_unequal_number_of_sources_is_an_error():
    with pytest.raises(DataError) as caught:
        evaluate(HYPOTHESES, [REFERENCE], sources=SOURCES[:3])
    assert str(caught.value) == (
        "source: number of lines must be that of the hypotheses, 4, but is 3; "
        "line N of both must belong together"
    )


def test_unequal_number_of_references_is_an_error():
    with pytest.raises(DataError, match=r"^reference 1: .* 3, but is 4; "):
        evaluate(HYPOTHESES[:3], [REFERENCE])


def test_text_is_aligned_and_has_every_signature():
    references = sentences_of_lengths(5, 5, 15)
    hypotheses = [references[0], "", references[2]]
    report = evaluate(hypotheses, [references])
    bleu_score, chrf_score, _ = report.scores
    short, long = report.by_length
    assert report.to_text().split("\n") == [
        f"BLEU   {bleu_score.value:5.1f}  {report.bleu.signature}",
        f"chrF2  {chrf_score.value:5.1f}  {report.chrf.signature}",
        f"TER     20.0  {report.ter.signature}",  # 5 of 25 words are missing
        "",
        "sentences: 3, empty hypotheses: 1, length ratio: 0.800",
        "",
        "BLEU by words of the reference",
        "words  sentences   BLEU",
        "1-10           2   36.8  " + "█" * 15,  # exp(1 - 10/5), of 40 characters
        "11-20          1  100.0  " + "█" * 40,
    ]
    assert short.bleu == pytest.approx(36.788, abs=1e-3)
    assert long.bleu == pytest.approx(100)


def test_text_names_the_first_ten_empty_references():
    empty_at = [2, *range(4, 15)]
    reference = ["" if line in empty_at else "a" for line in range(1, 16)]
    text = evaluate(["a"] * 15, [["a"] * 15, reference]).to_text()
    assert "empty lines in reference 2: 12 (2, 4, 5, 6, 7, 8, 9, 10, 11, 12, …)\n" in text
    assert "reference 1" not in text


def test_no_line_of_the_text_ends_in_a_space():
    text = evaluate(HYPOTHESES, [REFERENCE], sources=SOURCES).to_text()
    assert all(line == line.rstrip() for line in text.split("\n"))


def test_json_holds_the_whole_report():
    report = evaluate(HYPOTHESES, [REFERENCE, OTHER], sources=SOURCES)
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["scores"] == {
        score.name: {"value": score.value, "signature": score.signature} for score in report.scores
    }
    assert list(values["scores"]) == ["BLEU", "chrF2", "TER"]
    assert values["num_sentences"] == 4
    assert values["num_empty_hypotheses"] == 1
    assert values["empty_references"] == [[3], []]
    assert values["length_ratio"] == report.length_ratio
    assert values["length_of"] == "source"
    assert [Bucket(**bucket) for bucket in values["by_length"]] == list(report.by_length)
    assert values["by_length"][-1]["high"] is None
    assert values["versions"] == {"nmt": nmt.__version__, "sacrebleu": sacrebleu.__version__}


@pytest.mark.parametrize("hypotheses", [["", ""], ["a b c d", ""]])
@pytest.mark.parametrize("reference", [["", ""], ["a b c d", "e"]])
def test_json_is_finite_when_lines_are_empty(hypotheses, reference):
    report = evaluate(hypotheses, [reference])
    json.dumps(report.to_json(), allow_nan=False)
    assert report.to_text()


def test_evaluation_does_not_import_torch():
    code = "import sys, nmt.evaluation.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_share_of_unknown_tokens_is_shown_where_it_is_known():
    report = evaluate(["a"], [["a"]], unknown_tokens={"x.ko": 0.01234, "x.en": 0.0})
    assert "\nunknown tokens: 1.23% of x.ko, 0.00% of x.en\n" in report.to_text()
    assert report.to_json()["unknown_tokens"] == {"x.ko": 0.01234, "x.en": 0.0}
    without = evaluate(["a"], [["a"]])
    assert "unknown" not in without.to_text()
    assert without.to_json()["unknown_tokens"] == {}

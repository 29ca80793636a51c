"""Scores are sacreBLEU's own, carry their signature, and refuse what sacreBLEU would cut."""

import math

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER

from nmt.errors import ConfigError, DataError
from nmt.evaluation.metrics import TOKENIZE_CHOICES, Score, bleu, chrf, ter

HYPOTHESES = ["The cat sat on the mat.", "A dog runs, fast!", "I ate rice this morning ."]
REFERENCE = ["The cat sat on a mat.", "A dog is running fast!", "I ate rice this morning."]
OTHER = ["A cat sat on the mat.", "A dog runs fast!", "This morning I ate rice."]
OFFLINE = [name for name in TOKENIZE_CHOICES if not name.endswith("-mecab")]


def test_bleu_is_the_geometric_mean_of_clipped_precisions():
    # "the" is matched once only: 5/6 words, 3/5 pairs, 2/4 triples, 1/3 quadruples
    score = bleu(["the cat sat on the mat"], [["the cat sat on a mat"]])
    assert score.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))


def test_bleu_of_a_beginning_is_the_brevity_penalty():
    score = bleu(["the cat sat on"], [["the cat sat on the mat"]])
    assert score.value == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_chrf_counts_recall_twice():
    # "ab" for "abc": precisions 1 and 1, recalls 2/3 and 1/2; no trigram, so none is counted
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert chrf(["ab"], [["abc"]]).value == pytest.approx(expected)


def test_ter_is_edits_per_reference_word_and_ignores_case():
    assert ter(["The cat sat on a mat"], [["the cat sat on the mat"]]).value == pytest.approx(
        100 / 6
    )


def test_a_moved_phrase_is_one_edit():
    assert ter(["d e a b c"], [["a b c d e"]]).value == pytest.approx(100 / 5)


@pytest.mark.parametrize("references", [[REFERENCE], [OTHER], [REFERENCE, OTHER]])
def test_scores_are_those_of_sacrebleu(references):
    for ours, metric in [
        (bleu(HYPOTHESES, references), BLEU()),
        (chrf(HYPOTHESES, references), CHRF()),
        (ter(HYPOTHESES, references), TER()),
    ]:
        theirs = metric.corpus_score(HYPOTHESES, references)
        assert ours == Score(theirs.name, theirs.score, str(metric.get_signature()))


@pytest.mark.parametrize("tokenize", OFFLINE)
@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_tokenizes_and_lowercases_as_sacrebleu(tokenize, lowercase):
    hypotheses, reference = (
        ["THE mat, 垫子 3.5%!", "it is here."],
        ["the mat, 坐垫 3.5%.", "It is."],
    )
    metric = BLEU(tokenize=tokenize, lowercase=lowercase)
    theirs = metric.corpus_score(hypotheses, [reference])
    ours = bleu(hypotheses, [reference], tokenize=tokenize, lowercase=lowercase)
    assert ours == Score("BLEU", theirs.score, str(metric.get_signature()))
    assert f"|tok:{tokenize}|" in ours.signature
    assert ("|case:lc|" if lowercase else "|case:mixed|") in ours.signature


def test_lowercase_ignores_case():
    assert bleu(["A B C D"], [["a b c d"]]).value == 0
    assert bleu(["A B C D"], [["a b c d"]], lowercase=True).value == pytest.approx(100)
    assert chrf(["ABCD"], [["abcd"]]).value == 0
    assert chrf(["ABCD"], [["abcd"]], lowercase=True).value == pytest.approx(100)


def test_equal_text_is_perfect():
    assert bleu(REFERENCE, [REFERENCE]).value == pytest.approx(100)
    assert chrf(REFERENCE, [REFERENCE]).value == pytest.approx(100)
    assert ter(REFERENCE, [REFERENCE]).value == 0


def test_bleu_is_zero_without_four_tokens():
    assert bleu(["I ate rice"], [["I ate rice"]]).value == 0


def test_a_second_reference_can_only_help_bleu():
    one = bleu(HYPOTHESES, [REFERENCE])
    two = bleu(HYPOTHESES, [REFERENCE, OTHER])
    assert two.value > one.value
    assert one.signature.startswith("nrefs:1|")
    assert two.signature.startswith("nrefs:2|")


def test_empty_hypotheses_are_scored():
    assert bleu(["", ""], [REFERENCE[:2]]).value == 0
    assert chrf(["", ""], [REFERENCE[:2]]).value == 0
    assert ter(["", ""], [REFERENCE[:2]]).value == 100
    assert 0 < bleu([REFERENCE[0], ""], [REFERENCE[:2], OTHER[:2]]).value < 100


def test_a_score_prints_its_signature():
    version = sacrebleu.__version__
    assert str(bleu(REFERENCE, [REFERENCE])) == (
        f"BLEU 100.0  nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    )
    assert str(chrf(REFERENCE, [REFERENCE])) == (
        f"chrF2 100.0  nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    )
    assert str(ter(REFERENCE, [REFERENCE])) == (
        f"TER 0.0  nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:{version}"
    )
    assert str(Score("BLEU", 38.46, "sig")) == "BLEU 38.5  sig"


def test_sacrebleu_has_every_tokenizer_that_we_offer():
    assert set(TOKENIZE_CHOICES) <= set(BLEU.TOKENIZERS)


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_missing_tokenizer_package_is_named(language, monkeypatch):
    monkeypatch.setattr(f"sacrebleu.tokenizers.tokenizer_{language}_mecab.MeCab", None)
    with pytest.raises(ConfigError) as caught:
        bleu(["a"], [["a"]], tokenize=f"{language}-mecab")
    assert str(caught.value) == (
        f"tokenize: '{language}-mecab' needs packages that are not installed; "
        f"run: pip install 'sacrebleu[{language}]'"
    )


@pytest.mark.parametrize("metric", [bleu, chrf, ter])
class TestCounts:
    @pytest.mark.parametrize("short", [["a"], ["a", "b", "c"], []])
    def test_unequal_counts_are_an_error_that_names_the_reference(self, metric, short):
        with pytest.raises(DataError) as caught:
            metric(["a", "b"], [["a", "b"], short])
        assert str(caught.value) == (
            "reference 2: number of lines must be that of the hypotheses, 2, "
            f"but is {len(short)}; line N of both must belong together"
        )

    def test_an_empty_corpus_is_an_error(self, metric):
        with pytest.raises(DataError) as caught:
            metric([], [[]])
        assert str(caught.value) == (
            "hypotheses: there are none, so there is no score; is the file empty?"
        )

    def test_no_reference_is_an_error(self, metric):
        with pytest.raises(ConfigError) as caught:
            metric(["a"], [])
        assert str(caught.value) == (
            "references: there must be at least one; give a file of references"
        )

    def test_sentences_in_place_of_reference_sets_are_refused(self, metric):
        with pytest.raises(TypeError, match="one per reference set"):
            metric(["a", "b"], ["ab", "cd"])


def test_text_that_looks_tokenized_is_scored_without_a_warning(caplog):
    sentences = ["we ate rice ."] * 100
    assert bleu(sentences, [sentences]).value == pytest.approx(100)
    assert not caplog.records

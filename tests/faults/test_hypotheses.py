"""What a search finds: nothing at all, n of them, and what the model looked at meanwhile."""

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & <!-- \"'"


@pytest.fixture
def sources(tiny, write):
    """A file of held-out sentences with blank lines among them."""
    lines = tiny.lines("test.ko")[:12]
    return write("sources", "".join(f"{line}\n" for line in ["", *lines, " ", "\u3000"]))


def objects(ended):
    """The JSON objects of the output, none of which holds NaN or an infinity."""

    def refuse(word):
        raise AssertionError(word)

    assert (ended.code, ended.err) == (0, "")
    return [json.loads(line, parse_constant=refuse) for line in ended.lines]


@pytest.mark.parametrize("length_penalty", ["0", "1"])
def test_f43_an_empty_hypothesis_is_an_empty_line_with_finite_scores(
    nmt, tiny, sources, length_penalty
):
    """In a beam as large as the vocabulary, one hypothesis of a sentence is `</s>` alone."""
    arguments = ("translate", "--model", tiny.run, "--input", sources, "--beam-size", "64")
    limits = ("--n-best", "64", "--min-length", "0", "--max-length", "1")
    limits += ("--length-penalty", length_penalty)
    lines = objects(nmt(*arguments, *limits, "--format", "jsonl"))
    found = [hypothesis for line in lines for hypothesis in line["hypotheses"]]
    empty = [hypothesis for hypothesis in found if hypothesis["tokens"] == ["</s>"]]
    assert len(empty) == 12
    assert all(hypothesis["text"] == "" for hypothesis in empty)
    for hypothesis in found:
        numbers = [hypothesis["score"], hypothesis["log_prob"], *hypothesis["token_log_probs"]]
        assert all(math.isfinite(number) for number in numbers)
    text = nmt(*arguments, *limits)
    assert text.code == 0
    assert [line.split(" ||| ")[1] for line in text.lines] == [h["text"] for h in found]


def test_f43_a_translation_has_at_least_one_token_unless_something_else_is_said(nmt, tiny, sources):
    arguments = ("translate", "--model", tiny.run, "--input", sources, "--beam-size", "64")
    ended = nmt(*arguments, "--n-best", "64", "--max-length", "1", "--format", "jsonl")
    lengths = [{len(h["tokens"]) for h in line["hypotheses"]} for line in objects(ended)]
    assert lengths == [{0}, *[{2}] * 12, {0}, {0}]


def test_f43_an_empty_hypothesis_can_be_scored_and_looked_at(nmt, tiny, write):
    write("src", f"{SENTENCE}\n\n{SENTENCE}\n")
    write("empty", f"\n\n{TRANSLATION}\n")
    files = ("--src", "src", "--tgt", "empty")
    scored = objects(nmt("score", "--model", tiny.run, *files, "--format", "jsonl"))
    assert [line["log_prob"] is None for line in scored] == [True, True, False]
    dumped = objects(nmt("attn-dump", "--model", tiny.run, *files))
    assert [bool(line["weights"]) for line in dumped] == [False, False, True]
    ended = nmt("eval", "--hyp", "empty", "--ref", "src", "--json")
    assert ended.code == 0
    scores = json.loads(ended.out)["scores"]
    assert all(math.isfinite(score["value"]) for score in scores.values())


def test_f43_nothing_but_empty_hypotheses_scores_nothing(nmt, write):
    write("empty", "\n" * 3)
    write("ref", f"{TRANSLATION}\n" * 3)
    ended = nmt("eval", "--hyp", "empty", "--ref", "ref", "--json", "--confidence")
    report = json.loads(ended.out)
    assert [score["value"] for score in report["scores"].values()][:2] == [0, 0]
    assert report["num_empty_hypotheses"] == 3
    assert "NaN" not in ended.out
    assert "Infinity" not in ended.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--beam-size", "1", "--n-best", "2"),
            "--n-best: must be at most the beam size 1, but is 2; raise --beam-size",
        ),
        (
            ("--beam-size", "4", "--n-best", "5"),
            "--n-best: must be at most the beam size 4, but is 5; raise --beam-size",
        ),
        (("--beam-size", "0"), "--beam-size: must be at least 1, but is 0"),
    ],
)
@pytest.mark.parametrize("command", [("translate",), ("attn-dump", "--src", "-")], ids=" ".join)
def test_f44_more_translations_than_the_beam_holds_are_refused_before_the_model_is_read(
    nmt, command, options, message
):
    ended = nmt(*command, "--model", "no such model", *options)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("n_best", ["0", "-1", "6"])
def test_f44_n_best_is_measured_by_the_beam_of_the_config(nmt, tiny, n_best):
    ended = nmt("translate", "--model", tiny.run, "--n-best", n_best, stdin=SENTENCE)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: n-best: must be between 1 and the beam size 5, but is {n_best}; "
        "raise the beam size\n"
    )


@pytest.mark.parametrize("beam_size", [2, 5])
def test_f44_the_best_of_n_is_the_best_of_one(nmt, tiny, sources, beam_size):
    def best(n_best):
        ended = nmt(
            *("translate", "--model", tiny.run, "--input", sources, "--format", "jsonl"),
            *("--beam-size", beam_size, "--n-best", n_best),
        )
        return [line["hypotheses"] for line in objects(ended)]

    for one, many in zip(best(1), best(beam_size), strict=True):
        assert len(one) == 1
        assert one[0]["tokens"] == many[0]["tokens"]
        assert one[0]["score"] == pytest.approx(many[0]["score"], abs=1e-5)
        scores = [hypothesis["score"] for hypothesis in many]
        assert scores == sorted(scores, reverse=True)
        assert len(many) in (1 if not many[0]["text"] else beam_size, beam_size)
        assert len({tuple(hypothesis["tokens"]) for hypothesis in many}) == len(many)


def test_f44_a_blank_line_has_one_empty_translation_however_many_are_asked_for(nmt, tiny):
    ended = nmt("translate", "-m", tiny.run, "--n-best", "3", stdin=f"\n{SENTENCE}\n")
    assert ended.lines[0] == "1 |||  ||| 0.000000"
    assert [line.split(" ||| ")[0] for line in ended.lines] == ["1", "2", "2", "2"]


@pytest.mark.parametrize("level", ["subword", "word"])
def test_f48_the_weights_are_those_of_the_surviving_hypothesis(nmt, tiny, sources, write, level):
    """They equal those of each hypothesis alone, forced and not searched, and rows sum to one."""
    arguments = ("--model", tiny.run, "--level", level)
    found = objects(nmt("attn-dump", *arguments, "--src", sources, "--n-best", "4"))
    assert {row["rank"] for row in found} == {1, 2, 3, 4}
    translated = objects(
        nmt("translate", "-m", tiny.run, "-i", sources, "--n-best", "4", "--format", "jsonl")
    )
    hypotheses = [(line["src"], h) for line in translated for h in line["hypotheses"]]
    assert len(found) == len(hypotheses)
    for row, (src, hypothesis) in zip(found, hypotheses, strict=True):
        if not hypothesis["text"]:
            assert row["weights"] == []
            continue
        write("src", f"{src}\n")
        write("tgt", hypothesis["text"] + "\n")
        [alone] = objects(nmt("attn-dump", *arguments, "--src", "src", "--tgt", "tgt"))
        if alone["tgt_tokens"] != row["tgt_tokens"]:
            continue  # the search has cut its words into other pieces
        weights = np.array(row["weights"])
        assert weights == pytest.approx(np.array(alone["weights"]), abs=1e-4)
        assert weights.sum(1) == pytest.approx(1, abs=1e-4)
        assert weights.shape == (len(row["tgt_tokens"]), len(row["src_tokens"]))


def test_f48_padding_gets_no_weight(nmt, tiny, write):
    """Beside a long pair a short one has the weights that it has alone."""
    write("src", f"{SENTENCE}\n나는\n")
    write("tgt", f"{TRANSLATION}\nI\n")
    files = ("--model", tiny.run, "--src", "src", "--tgt", "tgt")
    _, beside = objects(nmt("attn-dump", *files))
    write("src", "나는\n")
    write("tgt", "I\n")
    [alone] = objects(nmt("attn-dump", *files))
    assert np.array(beside["weights"]) == pytest.approx(np.array(alone["weights"]), abs=1e-5)


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, their text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.comments = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_comment(self, data):
        self.comments.append(data)


@pytest.mark.parametrize("level", ["subword", "word"])
def test_f48_text_on_a_page_is_never_markup(nmt, tiny, write, tmp_path, level):
    def page(src, tgt):
        write("src", f"{src}\n")
        write("tgt", f"{tgt}\n")
        ended = nmt(
            *("attn-dump", "--model", tiny.run, "--src", "src", "--tgt", "tgt", "--level", level),
            *("--html", "page.html", "--svg", "pictures"),
        )
        assert (ended.code, ended.err) == (0, "")
        picture = (tmp_path / "pictures/000001.svg").read_text(encoding="utf-8")
        return (tmp_path / "page.html").read_text(encoding="utf-8"), picture

    text, picture = page(EVIL, EVIL)
    harmless = Page(page("a b c", "a b c")[0])
    evil = Page(text)
    assert set(evil.elements) == set(harmless.elements)
    assert evil.elements.count("script") == harmless.elements.count("script")
    assert evil.attributes == harmless.attributes
    assert evil.comments == harmless.comments
    [data] = re.findall(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["pairs"][0]["src"] == EVIL
    assert {
        element.tag.rpartition("}")[2] for element in ElementTree.fromstring(picture).iter()
    } <= {*("svg", "g", "rect", "text", "title", "path", "line", "style")}

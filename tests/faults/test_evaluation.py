"""Scores that mean what they say: counts, signatures, intervals, tests between systems."""

import hashlib
import json
import random
import re
from importlib.metadata import version

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

import nmt as package

NAMES = ["BLEU", "chrF2", "TER"]


def corrupt(lines, share, seed):
    """Sentences of which some words are gone."""
    draw = random.Random(seed)
    return [
        " ".join(w for w in line.split() if draw.random() >= share) or "nothing" for line in lines
    ]


@pytest.fixture
def files(tiny, write):
    """References, and the hypotheses of a good and two bad systems."""
    references = tiny.lines("train.en")[:80]
    texts = {"ref": references}
    texts |= {
        name: corrupt(references, share, seed)
        for name, share, seed in (("good", 0.05, 1), ("bad", 0.3, 2), ("like bad", 0.3, 3))
    }
    for name, lines in texts.items():
        write(name, "".join(f"{line}\n" for line in lines))
    return texts


def report(ended):
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("side", ["hyp", "ref", "src", "compare"])
def test_f45_a_line_more_or_less_is_refused_with_both_counts(nmt, files, write, side, change):
    lines = [*files["good"], "one more"] if change == 1 else files["good"][:-1]
    write("odd", "".join(f"{line}\n" for line in lines))
    options = {"hyp": "bad", "ref": "ref", "src": "ref", "compare": "good"} | {side: "odd"}
    ended = nmt("eval", *(word for key, path in options.items() for word in (f"--{key}", path)))
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error: ")
    assert re.search(rf"odd has {80 + change}( lines)?\b", ended.err)
    assert re.search(r"\w has 80( lines)?\b", ended.err)
    assert ended.err.endswith("; line N of one must belong to line N of the other\n")


def test_f45_counts_of_a_model_are_checked_before_it_is_read(nmt, files, write):
    write("odd", "a\n")
    ended = nmt("eval", "--model", "no such model", "--src", "ref", "--ref", "odd")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error: ref has 80 lines but odd has 1; ")


def test_f45_no_reference_is_a_usage_error(nmt, files):
    ended = nmt("eval", "--hyp", "good")
    assert (ended.code, ended.out) == (2, "")
    assert "Missing option '--ref'" in ended.err


def test_f45_several_references_are_one_score(nmt, files):
    found = report(nmt("eval", "--hyp", "bad", "--ref", "ref", "--ref", "good", "--json"))
    expected = sacrebleu.corpus_bleu(files["bad"], [files["ref"], files["good"]])
    assert found["scores"]["BLEU"]["value"] == expected.score
    assert found["scores"]["BLEU"]["signature"].startswith("nrefs:2|")


def test_f45_blank_references_are_named_with_their_lines(nmt, files, write):
    blank = ["", *files["ref"][1:7], " \u3000", *files["ref"][8:]]
    write("holes", "".join(f"{line}\n" for line in blank))
    ended = nmt("eval", "--hyp", "good", "--ref", "ref", "--ref", "holes")
    assert ended.code == 0
    assert ended.err == (
        "warning: holes: blank references: 2 (the first is line 1); against a blank reference "
        "nothing scores\n"
    )
    assert "empty lines in reference 2: 2 (1, 8)" in ended.out
    found = nmt("eval", "--hyp", "good", "--ref", "ref", "--ref", "holes", "--json")
    assert json.loads(found.out)["empty_references"] == [[], [1, 8]]


@pytest.mark.parametrize("content", ["", "\n"])
def test_f45_nothing_to_score_is_said(nmt, write, content):
    write("hyp", content)
    write("ref", content)
    ended = nmt("eval", "--hyp", "hyp", "--ref", "ref")
    assert ended.code == (0 if content else 3)
    assert (content == "") is ended.err.startswith("error: hypotheses: there are none")


@pytest.mark.parametrize("options", [(), ("--confidence",), ("--tokenize", "char", "--lowercase")])
def test_f46_a_score_never_comes_without_its_signature(nmt, files, options):
    ended = nmt("eval", "--hyp", "good", "--ref", "ref", *options)
    assert (ended.code, ended.err) == (0, "")
    for name in NAMES:
        [line] = [line for line in ended.lines if line.startswith(f"{name} ") and "." in line][:1]
        assert f"version:{sacrebleu.__version__}" in line
    found = report(nmt("eval", "--hyp", "good", "--ref", "ref", "--json", *options))
    assert list(found["scores"]) == NAMES
    assert all("version:" in score["signature"] for score in found["scores"].values())


def test_f46_json_says_what_was_scored_with_what(nmt, files, tmp_path):
    found = report(
        nmt(*("eval", "--hyp", "good", "--ref", "ref", "--ref", "bad", "--src", "ref", "--json"))
    )
    assert found["versions"] == {"nmt": package.__version__, "sacrebleu": sacrebleu.__version__}

    def digest(name):
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    assert found["sha256"] == {
        "hypotheses": digest("good"),
        "references": [digest("ref"), digest("bad")],
        "source": digest("ref"),
        "compared": [],
    }


def test_f46_the_hash_of_a_models_translations_is_that_of_the_file_they_are_kept_in(
    nmt, tiny, write, tmp_path
):
    write("x", "")
    files = ("--src", tiny.path("test.ko"), "--ref", tiny.path("test.en"))
    ended = nmt("eval", "--model", tiny.run, *files, "--json", "--output", "kept")
    digest = hashlib.sha256((tmp_path / "kept").read_bytes()).hexdigest()
    assert json.loads(ended.out)["sha256"]["hypotheses"] == digest


def test_f46_intervals_are_those_of_sacrebleus_bootstrap(nmt, files):
    found = report(nmt("eval", "--hyp", "bad", "--ref", "ref", "--json", "--confidence"))
    [system] = found["significance"]["systems"]
    assert system["name"] == "bad"
    for name, metric in zip(NAMES, (BLEU(force=True), CHRF(), TER()), strict=True):
        expected = metric.corpus_score(files["bad"], [files["ref"]], n_bootstrap=1000)
        estimate = system["scores"][name]
        assert estimate["value"] == found["scores"][name]["value"] == expected.score
        assert estimate["mean"] == pytest.approx(expected._mean, abs=1e-4)
        assert estimate["half_width"] == pytest.approx(expected._ci, abs=1e-4)
        assert estimate["half_width"] > 0
        assert estimate["p_value"] is None
        assert found["significance"]["signatures"][name] == str(metric.get_signature())
        assert "bs:1000|seed:12345" in found["significance"]["signatures"][name]
    assert found["significance"]["numpy"] == version("numpy")


def test_f46_systems_are_compared_by_paired_bootstrap(nmt, files):
    others = ("--compare", "bad", "--compare", "like bad")
    found = report(nmt("eval", "--hyp", "good", "--ref", "ref", "--json", *others))
    systems = [(name, files[name]) for name in ("good", "bad", "like bad")]
    metrics = {"BLEU": BLEU(force=True), "chrF": CHRF(), "TER": TER()}
    _, expected = PairedTest(systems, metrics, [files["ref"]], test_type="bs")()
    significance = found["significance"]
    assert significance["baseline"] == "good"
    for n, system in enumerate(significance["systems"]):
        assert system["name"] == systems[n][0]
        for name in NAMES:
            assert system["scores"][name]["value"] == expected[name][n].score
            assert system["scores"][name]["p_value"] == expected[name][n].p_value
    assert all(s["scores"][n]["p_value"] < 0.05 for s in significance["systems"][1:] for n in NAMES)


def test_f46_two_systems_of_the_same_quality_do_not_differ(nmt, files, write):
    """Each has the mistakes of the other, in neighbouring sentences."""
    pairs = zip(files["ref"], files["bad"], strict=True)
    mixed = [(ref, bad) if n % 2 else (bad, ref) for n, (ref, bad) in enumerate(pairs)]
    for name, column in (("one", 0), ("other", 1)):
        write(name, "".join(f"{row[column]}\n" for row in mixed))
    ended = nmt("eval", "--hyp", "one", "--ref", "ref", "--compare", "other", "--json")
    [_, other] = report(ended)["significance"]["systems"]
    assert all(other["scores"][name]["p_value"] > 0.05 for name in NAMES)
    again = nmt("eval", "--hyp", "one", "--ref", "ref", "--compare", "other", "--json")
    assert again.out == ended.out


def test_f46_a_model_can_be_the_baseline_and_the_table_shows_the_test(nmt, tiny, write):
    write("other", "".join(f"{line}\n" for line in corrupt(tiny.lines("test.en"), 0.5, 1)))
    files = ("--src", tiny.path("test.ko"), "--ref", tiny.path("test.en"))
    ended = nmt("eval", "--model", tiny.run, *files, "--compare", "other")
    assert ended.code == 0
    assert f"; p of the difference to {tiny.run}, * below 0.05" in ended.out
    rows = [line for line in ended.lines if line.startswith("  other ")]
    assert len(rows) == 3
    assert all("p = 0.0010*" in row for row in rows)
    assert len([line for line in ended.lines if line.startswith(f"  {tiny.run} ")]) == 3


def test_f46_standard_input_is_read_once(nmt, files):
    ended = nmt("eval", "--hyp", "-", "--ref", "ref", "--compare", "-")
    assert (ended.code, ended.out) == (2, "")
    assert "only one can be standard input" in ended.err

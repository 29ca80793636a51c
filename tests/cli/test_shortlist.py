"""`nmt shortlist`, and `--shortlist` where a model translates."""

import re
import shutil

import pytest


@pytest.fixture
def run(tiny, tmp_path):
    """A copy of the run, without a shortlist."""
    shutil.copytree(tiny.run, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_model_translates_as_well_from_its_shortlist(nmt, tiny, run):
    made = nmt("shortlist", run, "--frequent", "5", "--per-token", "8")
    assert (made.code, made.out) == (0, "")
    assert re.fullmatch(
        rf"{run}/shortlist\.npz: allows \d\d target tokens per sentence on average, and "
        r"(9\d\.\d|100\.0)% of the tokens of the references \(20 pairs\)\n",
        made.err,
    )
    test = ("--model", run, "--shortlist")
    found = nmt("translate", *test, "--input", tiny.path("test.ko"))
    assert (found.code, found.err, found.lines) == (0, "", tiny.lines("test.en"))
    files = ("--src", tiny.path("test.ko"), "--ref", tiny.path("test.en"))
    assert nmt("eval", *test, *files).out.startswith("BLEU   100.0  ")


def test_only_what_the_shortlist_allows_is_written(nmt, tiny, run):
    """Nothing but special tokens, one frequent token and one per source token is left."""
    nmt("shortlist", run, "--frequent", "1", "--per-token", "1")
    full = nmt("translate", "--model", run, "--input", tiny.path("test.ko"))
    short = nmt("translate", "--model", run, "--input", tiny.path("test.ko"), "--shortlist")
    assert short.code == 0
    assert short.lines != full.lines


@pytest.mark.parametrize("command", ["translate", "eval"])
def test_a_missing_shortlist_says_how_to_make_it(nmt, tiny, run, command):
    file = tiny.path("test.ko")
    files = ("--src", file, "--ref", file) if command == "eval" else ("--input", file)
    ended = nmt(command, "--model", run, "--shortlist", *files)
    message = "there is no such file; make it with `nmt shortlist`"
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == f"error: {run}/shortlist.npz: {message}\n"


def test_a_folder_that_is_no_run_is_refused(nmt, tmp_path):
    ended = nmt("shortlist", tmp_path)
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith(f"error: {tmp_path}: holds no checkpoint of nmt; ")


def test_translations_that_are_given_need_no_shortlist(nmt, write):
    write("text", "a\n")
    ended = nmt("eval", "--hyp", "text", "--ref", "text", "--shortlist")
    assert ended.code == 2
    assert ended.err.startswith("error: --shortlist: says how to translate, but --hyp gives ")

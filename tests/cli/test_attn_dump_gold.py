"""`nmt attn-dump --gold`, and the command lines that attn-dump refuses."""

import re

import pytest

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
ONE_LINE = "give one line of links for each pair, a blank one if it has none"


@pytest.fixture
def dump(nmt, tiny):
    """Runs `nmt attn-dump` on the test set with its true translations."""

    def run(*options):
        src, tgt = tiny.path("test.ko"), tiny.path("test.en")
        return nmt("attn-dump", "-m", tiny.run, "--src", src, "--tgt", tgt, *options)

    return run


def shift(lines, by):
    """The links with other numbers for the same words."""
    return "".join(
        re.sub(r"\d+", lambda match: str(int(match[0]) + by), line) + "\n" for line in lines
    )


def test_gold_links_give_precision_recall_and_aer(dump, tiny):
    ended = dump("--gold", tiny.path("test.gold"), "--gold-base", "0")
    assert (ended.code, ended.err) == (0, "")
    found = dump("--level", "word", "--pharaoh", "-").lines
    ours = {(line, link) for line, text in enumerate(found) for link in text.split()}
    true = {
        (line, link) for line, text in enumerate(tiny.lines("test.gold")) for link in text.split()
    }
    both = len(ours & true)
    assert ended.out == (
        f"AER {100 * (1 - 2 * both / (len(ours) + len(true))):.1f} "
        f"(precision {100 * both / len(ours):.1f}, recall {100 * both / len(true):.1f}, "
        f"{len(ours)} links in 30 sentences)\n"
    )
    assert both > 0.8 * len(true)


def test_possible_links_may_be_found_and_need_not(dump, tiny, write):
    def result(mark):
        write("gold", "\n".join(tiny.lines("test.gold")).replace("-", mark))
        ended = dump("--gold", "gold", "--gold-base", "0")
        return dict(re.findall(r"(AER|precision|recall) ([\d.]+)", ended.out))

    sure, possible = result("-"), result("p")
    assert possible == result("?")
    assert possible["precision"] == sure["precision"]
    assert possible["recall"] == "100.0"


def test_both_bases_give_the_same_when_the_file_is_shifted(dump, tiny, write):
    write("gold", shift(tiny.lines("test.gold"), 1))
    one = dump("--gold", "gold", "--gold-base", "1")
    assert one.code == 0
    assert one.out == dump("--gold", tiny.path("test.gold"), "--gold-base", "0").out


def test_the_result_goes_to_stderr_if_data_goes_to_stdout(dump, tiny):
    gold = ("--gold", tiny.path("test.gold"), "--gold-base", "0")
    both = dump(*gold, "--pharaoh", "-")
    assert both.out == dump("--pharaoh", "-").out
    assert both.err == dump(*gold).out


def test_a_page_shows_the_gold_links(dump, tiny, write, tmp_path):
    write("x", "")
    gold = ("--gold", tiny.path("test.gold"), "--gold-base", "0")
    assert dump(*gold, "--html", "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert dump("--html", "-").out != page
    src, tgt = tiny.lines("test.gold")[0].split()[0].split("-")
    assert f'"sure":[[{src},{tgt}]' in page


def test_a_0_based_file_read_as_1_based_is_an_error(dump, write, tiny):
    write("gold", shift(tiny.lines("test.gold"), 0))
    ended = dump("--gold", "gold", "--gold-base", "1")
    assert (ended.code, ended.out) == (3, "")
    assert re.fullmatch(
        r"error: gold:1: link '\d-\d' names word 0, but the first word of a 1-based file is word "
        r"1; the file looks 0-based, so read it with base 0\n",
        ended.err,
    )


def test_a_1_based_file_read_as_0_based_is_an_error(dump, write, tiny):
    write("gold", shift(tiny.lines("test.gold"), 1))
    ended = dump("--gold", "gold", "--gold-base", "0")
    assert (ended.code, ended.out) == (3, "")
    assert re.fullmatch(
        r"error: gold:1: link \d-\d lies outside the sentence pair \(\d source and \d target "
        r"words, the first is word 0\); check the base \(is the file 1-based\?\), .*\n",
        ended.err,
    )


@pytest.mark.parametrize("num_lines", [29, 31, 0])
def test_there_is_one_line_of_gold_links_per_pair(dump, write, tmp_path, num_lines):
    write("gold", "0-0\n" * num_lines)
    ended = dump("--gold", "gold", "--gold-base", "0", "--jsonl", "out")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        f"error: gold: has {num_lines} lines, but there are 30 sentence pairs; {ONE_LINE}\n"
    )
    assert not (tmp_path / "out").exists()


def test_what_is_no_link_is_named(dump, write):
    write("gold", "0-0 1:1\n" * 30)
    ended = dump("--gold", "gold", "--gold-base", "0")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        "error: gold:1: '1:1' is no link; write i-j, ipj or i?j (source first), separated by "
        "spaces\n"
    )


def test_blank_pairs_have_no_links(nmt, tiny, write):
    write("s", f"{SENTENCE}\n\n{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n\n{TRANSLATION}\n")
    write("gold", "0-3 1-0 2-2 3-1\n\n0-3 1-0 2-2 3-1\n")
    ended = nmt(
        *("attn-dump", "-m", tiny.run, "--src", "s", "--tgt", "t"),
        *("--gold", "gold", "--gold-base", "0"),
    )
    assert ended.code == 0
    assert re.search(r"[678] links in 3 sentences\)\n$", ended.out)


def test_unequal_numbers_of_lines_are_refused(nmt, tiny, write, tmp_path):
    write("s", f"{SENTENCE}\n{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n")
    ended = nmt("attn-dump", "-m", tiny.run, "--src", "s", "--tgt", "t", "--jsonl", "out")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "error: s has 2 lines but t has 1; lines look shifted from 1 on\n"
    assert not (tmp_path / "out").exists()


NEEDS = (
    "attn-dump: --gold needs --tgt, whose words its links join, and --gold-base 0 or 1, "
    "the number of the first word in the gold file"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gold", "gold", "--gold-base", "0"], NEEDS),
        (["--gold", "gold", "--tgt", "t"], NEEDS),
        (["--gold", "gold", "--tgt", "t", "--gold-base", "2"], NEEDS),
        (
            ["--gold", "none", "--tgt", "t", "--gold-base", "0"],
            "none: cannot be read: No such file or directory",
        ),
        (
            ["--gold", "gold", "--tgt", "-", "--gold-base", "0"],
            "attn-dump: with --gold, --src and --tgt are read twice; name files instead of -",
        ),
        (
            ["--src", "-", "--tgt", "-"],
            "--src and --tgt: only one can be standard input; name a file",
        ),
        (
            ["--jsonl", "-", "--html", "-"],
            "--jsonl and --html: only one can be standard output; name a file",
        ),
        (["--beam-size", "0"], "--beam-size: must be at least 1, but is 0"),
        (
            ["--beam-size", "2", "--n-best", "3"],
            "--n-best: must be at most the beam size 2, but is 3; raise --beam-size",
        ),
        (
            ["--tgt", "t", "--n-best", "2"],
            "--n-best: says how to translate, but --tgt gives translations; leave one of the two "
            "out",
        ),
        (
            ["--tgt", "t", "--length-penalty", "2"],
            "--length-penalty: says how to translate, but --tgt gives translations; leave one of "
            "the two out",
        ),
    ],
)
def test_a_mistake_is_found_before_the_model_is_read(nmt, write, options, message):
    write("s", f"{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n")
    write("gold", "0-0\n")
    ended = nmt("attn-dump", "--model", "none", "--src", "s", *options)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-best", "6"], "n-best: must be between 1 and the beam size 5, but is 6; raise the "),
        (["--src", "none"], "none: cannot be read: No such file or directory"),
        (["--npz", "-"], "standard output: cannot hold an NPZ archive; name a file"),
        (["--svg", "-"], "standard output: cannot hold pictures; name a folder"),
        (["--svg", "s"], "s: is a file, but must be a folder; name another one"),
        (["--svg", "x/y"], "x/y: cannot be made: No such file or directory; name a folder in "),
        (["--jsonl", "x/y"], "x/y: cannot be written: No such file or directory"),
        (["--html", "."], ".: is a folder, but must be a file"),
    ],
)
def test_an_impossible_output_is_refused(nmt, tiny, write, options, message):
    write("s", f"{SENTENCE}\n")
    ended = nmt("attn-dump", "--model", tiny.run, "--src", "s", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1

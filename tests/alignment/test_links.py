import os
from pathlib import Path

import pytest

from nmt.alignment.links import (
    AlignmentScore,
    check_within,
    format_links,
    read_gold,
    read_links,
    score_links,
)
from nmt.errors import ConfigError, DataError


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "links"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_links_are_written_sorted():
    assert format_links([(2, 0), (0, 1), (0, 0)]) == "0-0 0-1 2-0"
    assert format_links([]) == ""


def test_what_is_written_is_read(file):
    links = [{(0, 0), (10, 2)}, set(), {(3, 4)}]
    path = file("".join(format_links(each) + "\n" for each in links))
    assert read_links(path) == links


def test_a_one_based_file_is_shifted(file):
    assert read_links(file("1-1 3-2\n"), base=1) == [{(0, 0), (2, 1)}]


def test_gold_links_are_sure_or_possible_and_sure_ones_are_possible(file):
    sure, possible = read_gold(file("1-1 2p3 2?2\n\n1p1\n"), base=1)
    assert sure == [{(0, 0)}, set(), set()]
    assert possible == [{(0, 0), (1, 2), (1, 1)}, set(), {(0, 0)}]


def test_a_link_that_is_both_sure_and_possible_is_sure(file):
    sure, possible = read_gold(file("0-0 0p0\n"), base=0)
    assert sure == possible == [{(0, 0)}]


@pytest.mark.parametrize(
    "text", ["1", "1-", "1-2-3", "-1-2", "1:2", "a-b", "1p2", "²-1", "1–2", "9" * 10 + "-1"]
)
def test_what_is_no_link_is_an_error(file, text):
    path = file(f"0-0\n0-0 {text}\n")
    with pytest.raises(DataError) as error:
        read_links(path)
    assert str(error.value) == (
        f"{path}:2: {text!r} is no link; write i-j (source first), separated by spaces"
    )


@pytest.mark.parametrize("text", ["1", "1-2-3", "1x2", "1-" + "9" * 5000])
def test_what_is_no_gold_link_is_an_error(file, text):
    path = file(f"{text}\n")
    with pytest.raises(DataError) as error:
        read_gold(path, base=0)
    assert str(error.value) == (
        f"{path}:1: {text!r} is no link; write i-j, ipj or i?j (source first), separated by spaces"
    )


@pytest.mark.parametrize("text", ["0-1", "1-0", "0p1"])
def test_word_0_in_a_one_based_file_is_an_error(file, text):
    path = file(f"1-1\n{text}\n")
    with pytest.raises(DataError) as error:
        read_gold(path, base=1)
    assert str(error.value) == (
        f"{path}:2: link '{text}' names word 0, but the first word of a 1-based file is word 1; "
        "the file looks 0-based, so read it with base 0"
    )


@pytest.mark.parametrize(("base", "text"), [(0, "3-0"), (0, "0-2"), (1, "4-1"), (1, "1p3")])
def test_a_link_outside_the_sentences_is_an_error(file, base, text):
    path = file(f"{base}-{base}\n{text}\n")
    with pytest.raises(DataError) as error:
        read_gold(path, base=base, lengths=[(1, 1), (3, 2)])
    assert str(error.value) == (
        f"{path}:2: link {text.replace('p', '-')} lies outside the sentence pair (3 source and "
        f"2 target words, the first is word {base}); check the base (is the file "
        f"{1 - base}-based?), that the source comes first, and that the words are split as in "
        "the alignment"
    )


def test_the_last_words_lie_within_the_sentences(file):
    assert read_links(file("2-1\n"), lengths=[(3, 2)]) == [{(2, 1)}]
    check_within([(2, 1)], 3, 2, "gold:1")
    with pytest.raises(DataError, match=r"^gold:1: link 3-2 lies outside"):
        check_within([(2, 1)], 2, 2, "gold:1", base=1)


@pytest.mark.parametrize("text", ["0-0\n", "0-0\n0-0\n0-0\n", ""])
def test_a_line_of_links_is_needed_for_each_pair(file, text):
    path = file(text)
    with pytest.raises(DataError) as error:
        read_links(path, lengths=[(1, 1), (1, 1)])
    assert str(error.value) == (
        f"{path}: has {text.count('-')} lines, but there are 2 sentence pairs; "
        "give one line of links for each pair, a blank one if it has none"
    )


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="missing: cannot be read"):
        read_links(tmp_path / "missing")


def test_the_score_is_och_and_neys_formula():
    found = [{(0, 0), (1, 1), (2, 2)}, {(0, 1)}]
    sure = [{(0, 0), (3, 3)}, set()]
    possible = [{(0, 0), (1, 1), (3, 3)}, {(0, 1), (5, 5)}]
    score = score_links(found, sure, possible)
    # |A| = 4, |S| = 2, |A ∩ S| = 1, |A ∩ P| = 3
    assert score.precision == 3 / 4
    assert score.recall == 1 / 2
    assert score.aer == pytest.approx(1 - (1 + 3) / (4 + 2))
    assert (score.num_links, score.num_sentences) == (4, 2)


def test_a_sure_link_counts_as_possible_even_if_it_is_not_listed_there():
    assert score_links([{(0, 0)}], [{(0, 0)}], [set()]).precision == 1


def test_repeated_links_count_once():
    score = score_links([[(0, 0), (0, 0)]], [[(0, 0), (0, 0), (1, 1)]], [[]])
    assert (score.num_links, score.recall) == (1, 1 / 2)


def test_nothing_found_has_full_precision_and_full_error():
    score = score_links([set()], [{(0, 0)}], [set()])
    assert (score.precision, score.recall, score.aer) == (1, 0, 1)
    nothing = score_links([], [], [])
    assert (nothing.precision, nothing.recall, nothing.aer) == (1, 1, 0)


def test_a_score_prints_itself_in_percent():
    score = AlignmentScore(0.9634, 0.9541, 0.0412, num_links=120, num_sentences=9)
    assert str(score) == "AER 4.1 (precision 96.3, recall 95.4, 120 links in 9 sentences)"


@pytest.mark.parametrize(("num_possible", "gold"), [(3, "3"), (2, "3/2")])
def test_unequal_numbers_of_sentences_are_an_error(num_possible, gold):
    with pytest.raises(DataError) as error:
        score_links([set()] * 2, [set()] * 3, [set()] * num_possible)
    assert str(error.value) == (
        f"alignment: 2 lines of links were found, but the gold has {gold} lines; "
        "score the same sentences on both sides"
    )


@pytest.mark.skipif(
    "NMT_GOLD_ALIGNMENTS" not in os.environ,
    reason="NMT_GOLD_ALIGNMENTS does not name the folder of the published alignments",
)
@pytest.mark.parametrize(
    ("name", "text"),
    [("enfr", "AER 4.1 (precision 96.3, recall 95.4,"), ("roen", "AER 20.7 (")],
)
def test_published_alignments_get_their_published_scores(name, text):
    folder = Path(os.environ["NMT_GOLD_ALIGNMENTS"])
    found = read_links(folder / f"{name}.awesome-align.out")
    assert str(score_links(found, *read_gold(folder / f"{name}.gold", base=1))).startswith(text)

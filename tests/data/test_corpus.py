"""Line N of one file belongs to line N of the other, and a pair is kept or dropped as a whole."""

import gzip

import numpy as np
import pytest

from nmt.data.corpus import FilterCounts, Findings, Pair, PairFilter, files_exist, read_pairs
from nmt.errors import ConfigError, DataError


@pytest.fixture
def files(tmp_path):
    """Writes two files of lines and gives their names."""

    def files(src, tgt):
        paths = (str(tmp_path / "train.de"), str(tmp_path / "train.en"))
        for path, lines in zip(paths, (src, tgt), strict=True):
            with open(path, "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(line + "\n" for line in lines)
        return paths

    return files


def message_of(paths):
    with pytest.raises(DataError) as error:
        list(read_pairs(*paths))
    return str(error.value)


def test_line_n_is_paired_with_line_n(files):
    paths = files(["eins", "", "drei\u2028vier"], ["one", "two", ""])
    assert list(read_pairs(*paths)) == [
        Pair(1, "eins", "one"),
        Pair(2, "", "two"),
        Pair(3, "drei\u2028vier", ""),
    ]


def test_empty_files_have_no_pairs(files):
    assert list(read_pairs(*files([], []))) == []


def test_a_missing_last_newline_is_no_missing_line(tmp_path):
    (tmp_path / "a").write_bytes(b"one\ntwo")
    (tmp_path / "b").write_bytes(b"1\r\n2\r\n")
    pairs = list(read_pairs(str(tmp_path / "a"), str(tmp_path / "b")))
    assert pairs == [Pair(1, "one", "1"), Pair(2, "two", "2")]


def test_a_compressed_file_is_paired_with_a_plain_one(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / "b").write_bytes(b"1\n")
    assert list(read_pairs(str(tmp_path / "a.gz"), str(tmp_path / "b"))) == [Pair(1, "one", "1")]


LENGTHS = [10, 50, 20, 90, 30, 70, 40, 80]


@pytest.mark.parametrize("lost", range(1, 9))
@pytest.mark.parametrize("side", [0, 1])
def test_a_lost_line_is_found(files, side, lost):
    src, tgt = ["x" * n for n in LENGTHS], ["y" * 3 * n for n in LENGTHS]
    del (src, tgt)[side][lost - 1]
    de, en = files(src, tgt)
    assert message_of((de, en)) == (
        f"{de} has {len(src)} lines but {en} has {len(tgt)}; lines look shifted from {lost} on"
    )


@pytest.mark.parametrize("extra", range(1, 10))
@pytest.mark.parametrize("side", [0, 1])
def test_an_extra_blank_line_is_found(files, side, extra):
    src, tgt = ["x" * n for n in LENGTHS], ["y" * 3 * n for n in LENGTHS]
    (src, tgt)[side].insert(extra - 1, "")
    assert message_of(files(src, tgt)).endswith(f"; lines look shifted from {extra} on")


@pytest.mark.parametrize("lost", [1, 17, 1000, 1999])
def test_lines_lost_in_a_noisy_corpus_are_found_nearly(files, lost):
    random = np.random.default_rng(lost)
    lengths = random.integers(10, 150, 2000)
    tgt_lengths = lengths * random.normal(1.2, 0.2, 2000).clip(0.5, 2)
    src, tgt = ["x" * n for n in lengths], ["y" * int(n) for n in tgt_lengths]
    del tgt[lost - 1 : lost + 1]
    guess = int(message_of(files(src, tgt)).split(" ")[-2])
    assert abs(guess - lost) <= 5


@pytest.mark.parametrize("side", [0, 1])
def test_an_empty_file_is_named_beside_the_other(files, side):
    contents = [["a", "b"], ["a", "b"]]
    contents[side] = []
    de, en = files(*contents)
    counts = [len(lines) for lines in contents]
    assert message_of((de, en)) == (
        f"{de} has {counts[0]} lines but {en} has {counts[1]}; one of the files is empty"
    )


def test_pairs_before_an_unequal_end_are_streamed(files):
    pairs = read_pairs(*files(["a"] * 10, ["b"] * 11))
    assert [next(pairs).line for _ in range(10)] == list(range(1, 11))
    with pytest.raises(DataError):
        next(pairs)


def test_a_missing_file_is_named(files, tmp_path):
    de, _ = files(["a"], ["b"])
    with pytest.raises(ConfigError) as error:
        list(read_pairs(de, str(tmp_path / "none")))
    assert str(error.value) == f"{tmp_path}/none: cannot be read: No such file or directory"


def test_files_are_looked_for_before_any_work(files, tmp_path):
    paths = files(["a"], [])
    files_exist(*paths)
    with pytest.raises(ConfigError, match="none: cannot be read: No such file or directory"):
        files_exist(*paths, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("num_src", "num_tgt", "reason"),
    [
        (1, 1, "kept"),
        (10, 10, "kept"),
        (11, 10, "too_long"),
        (10, 11, "too_long"),
        (0, 5, "empty_src"),
        (0, 0, "empty_src"),
        (5, 0, "empty_tgt"),
        (3, 9, "kept"),
        (9, 3, "kept"),
        (3, 10, "unequal_lengths"),
        (10, 3, "unequal_lengths"),
    ],
)
def test_a_pair_is_kept_or_dropped_for_one_reason(num_src, num_tgt, reason):
    counts = FilterCounts()
    kept = PairFilter(max_length=10, max_length_ratio=3).keeps(7, num_src, num_tgt, counts)
    assert kept == (reason == "kept")
    assert counts == FilterCounts(**{"kept": 0, reason: 1, "first_line": {reason: 7}})
    assert counts.total == 1


def test_without_a_ratio_unequal_lengths_are_kept():
    assert PairFilter(max_length=10).keeps(1, 1, 10, FilterCounts())


def test_the_counts_say_what_was_dropped_and_where_first():
    counts, pair_filter = FilterCounts(), PairFilter(max_length=10, max_length_ratio=2)
    for line, (num_src, num_tgt) in enumerate([(3, 3), (0, 3), (11, 9), (0, 2), (3, 0), (2, 5)], 1):
        pair_filter.keeps(line, num_src, num_tgt, counts)
    assert counts.total == 6
    assert str(counts) == (
        "1 of 6 pairs kept; dropped 2 with an empty source (first at line 2), "
        "1 with an empty target (first at line 5), 1 too long (first at line 3), "
        "1 of too unequal lengths (first at line 6)"
    )


def test_the_counts_of_a_clean_corpus_are_short():
    assert str(FilterCounts(kept=29000)) == "29,000 of 29,000 pairs kept"


@pytest.fixture
def odd_files(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\nb\0\nc\rd\n\xff\n")
    (tmp_path / "b").write_bytes(b"1\n2\n3\n\xff\n")
    return str(tmp_path / "a"), str(tmp_path / "b")


@pytest.mark.parametrize(
    ("policy", "valid", "done"),
    [
        ("replace", [True, True, True, True], "bad bytes were read as U+FFFD"),
        ("skip", [False, True, True, False], "pairs were left out"),
    ],
)
def test_odd_lines_are_counted_and_pairs_marked(odd_files, policy, valid, done):
    findings = Findings()
    pairs = list(read_pairs(*odd_files, policy, findings))
    assert [pair.is_valid for pair in pairs] == valid
    assert [pair.src for pair in pairs] == ["\ufffd", "b\0", "c d", "\ufffd"]
    assert list(findings.src.warnings("a", policy)) == [
        f"a: lines that are not valid UTF-8: 2 (the first is line 1); their {done}",
        "a: lines with NUL characters: 1 (the first is line 2); each was read as a space",
        "a: lines with a carriage return inside: 1 (the first is line 3); each was read as a space",
    ]
    assert findings.tgt.invalid.first == 4
    assert message_of(odd_files).startswith(f"{odd_files[0]}:1: byte 1 of the line is not valid")


def test_unequal_counts_are_found_beside_invalid_lines(odd_files, tmp_path):
    (tmp_path / "b").write_bytes(b"1\n")
    with pytest.raises(DataError, match=r"has 4 lines but .* has 1; lines look shifted from"):
        list(read_pairs(*odd_files, "skip"))


def test_a_file_that_begins_with_an_invalid_line_exists(odd_files):
    files_exist(*odd_files)

"""The token store: what was put in comes out, and a half-written one does not exist."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest

import nmt.data.store
from nmt.data.corpus import FilterCounts, Findings, Pair, PairFilter
from nmt.data.store import TokenStore, build_store, fingerprint
from nmt.errors import ConfigError, DataError, ModelError, TrainingError
from nmt.text.tokenizer import UnknownTokens

TEXTS = [("4 5 6", "7"), ("8", "9 10"), ("11 12", "13 14 15"), ("99", "98"), ("1 2 3 4", "5 6")]


def test_what_was_stored_comes_out(build):
    for store in (build(TEXTS), TokenStore(build(TEXTS)._flat["src"].base.filename.parent)):
        assert len(store) == 5
        for side, texts in zip(("src", "tgt"), zip(*TEXTS, strict=True), strict=True):
            ids = [[int(token) for token in text.split()] for text in texts]
            assert [store.token_ids(side, i).tolist() for i in range(5)] == ids
            assert store.lengths(side).tolist() == [len(i) for i in ids]
        assert store.lines.tolist() == [1, 2, 3, 4, 5]
        assert store.fingerprint == "made of this"
        assert store.counts == FilterCounts(kept=5, first_line={"kept": 1})


@pytest.mark.parametrize("chunk", [1, 2, 5, 6])
def test_the_size_of_chunks_changes_nothing(build, monkeypatch, chunk):
    monkeypatch.setattr(nmt.data.store, "CHUNK", chunk)
    store = build(TEXTS, with_text=True)
    assert [store.text("src", i) for i in range(5)] == [src for src, _ in TEXTS]
    assert [store.token_ids("tgt", i).tolist() for i in range(5)] == [
        [int(token) for token in tgt.split()] for _, tgt in TEXTS
    ]
    assert store.lines.tolist() == [1, 2, 3, 4, 5]


def test_filtered_pairs_are_counted_and_the_others_keep_their_line(build):
    texts = [("", "1"), ("2 3", "4"), ("5", ""), ("6 7 8 9", "1"), ("1", "2")]
    store = build(texts, pair_filter=PairFilter(max_length=3), with_text=True)
    assert store.lines.tolist() == [2, 5]
    assert [store.token_ids("src", i).tolist() for i in (0, 1)] == [[2, 3], [1]]
    assert [store.text("tgt", i) for i in (0, 1)] == ["4", "2"]
    assert str(store.counts) == (
        "2 of 5 pairs kept; dropped 1 with an empty source (first at line 1), "
        "1 with an empty target (first at line 3), 1 too long (first at line 4)"
    )


@pytest.mark.parametrize(
    ("vocab_size", "size"), [(100, 2), (1 << 16, 2), ((1 << 16) + 1, 4), (1 << 20, 4)]
)
def test_ids_take_two_bytes_if_they_fit_and_else_four(build, tmp_path, vocab_size, size):
    largest = vocab_size - 1
    store = build([(f"0 {largest}", "7")], vocab_size={"src": vocab_size, "tgt": 100})
    assert store.token_ids("src", 0).tolist() == [0, largest]
    assert (tmp_path / "train" / "src.bin").stat().st_size == 2 * size
    assert (tmp_path / "train" / "tgt.bin").stat().st_size == 2


def test_text_is_kept_only_where_it_was_asked_for(build, tmp_path):
    texts = [("나는 밥을", "I\u2028rice 😀"), ("ß", " e\u0301 ")]
    ones = {"src": lambda s: [[1]] * len(s), "tgt": lambda s: [[1]] * len(s)}
    store = build(texts, encode=ones, with_text=True)
    assert [(store.text("src", i), store.text("tgt", i)) for i in (0, 1)] == texts
    build(texts, "plain", encode=ones)
    assert not list((tmp_path / "plain").glob("*text*"))


def test_large_stores_stay_on_the_disk(build):
    store = build(TEXTS)
    assert isinstance(store._flat["src"].base, np.memmap)
    assert not store.token_ids("src", 0).flags.writeable


def folder_content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stopped(BaseException):
    """Ctrl-C."""


@pytest.mark.parametrize("error", [DataError("bad line"), Stopped()])
def test_an_interrupted_build_leaves_the_old_store(build, tmp_path, error):
    def interrupted():
        yield from TEXTS[:3]
        raise error

    build(TEXTS)
    before = folder_content(tmp_path / "train")
    with pytest.raises(type(error)):
        build(interrupted())
    assert folder_content(tmp_path / "train") == before
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_an_interrupted_first_build_leaves_nothing(build, tmp_path):
    def interrupted():
        yield TEXTS[0]
        raise Stopped

    with pytest.raises(Stopped):
        build(interrupted())
    assert list(tmp_path.iterdir()) == []


def test_a_build_replaces_the_old_store(build, tmp_path):
    build(TEXTS, with_text=True)
    store = build(TEXTS[:2])
    assert len(store) == len(TokenStore(tmp_path / "train")) == 2
    assert not list((tmp_path / "train").glob("*text*"))


def test_a_corpus_of_which_nothing_is_left_is_an_error(build, tmp_path):
    with pytest.raises(DataError) as error:
        build([("", "1"), ("2 3 4", "5")], pair_filter=PairFilter(max_length=2))
    assert str(error.value) == (
        "train: no sentence pair is left: 0 of 2 pairs kept; dropped 1 with an empty "
        "source (first at line 1), 1 too long (first at line 2)"
    )
    with pytest.raises(DataError, match=r"is left: 0 of 0 pairs kept$"):
        build([])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_named(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError) as error:
        build(TEXTS, "file/train")
    folder = tmp_path / "file" / "train"
    assert str(error.value) == f"{folder}: cannot be written: Not a directory"


def incomplete(folder):
    return f"{folder}: is not a complete token store; delete it, and it is made anew"


@pytest.mark.parametrize("damage", ["delete", "empty", "cut", "lengthen"])
@pytest.mark.parametrize(
    "name",
    [
        *("meta.json", "src.bin", "tgt.bin", "src.offsets.bin", "tgt.offsets.bin", "lines.bin"),
        *("src_text.bin", "tgt_text.offsets.bin"),
    ],
)
def test_an_incomplete_store_is_named(build, tmp_path, name, damage):
    build(TEXTS, with_text=True)
    folder = tmp_path / "train"
    content = (folder / name).read_bytes()
    match damage:
        case "delete":
            (folder / name).unlink()
        case "empty":
            (folder / name).write_bytes(b"")
        case "cut":
            (folder / name).write_bytes(content[:-8])
        case "lengthen":
            (folder / name).write_bytes(content + b"12345678")
    with pytest.raises(ModelError) as error:
        TokenStore(folder)
    assert str(error.value) == incomplete(folder)


@pytest.mark.parametrize("meta", ["[]", "{}", "null", "no json", '{"fingerprint": 1, "counts": 2}'])
def test_a_foreign_folder_is_not_a_store(tmp_path, meta):
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(ModelError) as error:
        TokenStore(tmp_path)
    assert str(error.value) == incomplete(tmp_path)


def test_a_store_says_what_it_holds_in_plain_text(build, tmp_path):
    build(TEXTS)
    meta = json.loads((tmp_path / "train" / "meta.json").read_text())
    assert meta["counts"]["kept"] == 5
    assert meta["fingerprint"] == "made of this"


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(nmt.data.store, "CHUNK", 500)
    sentence = " ".join(["4321"] * 30)
    token_ids = list(range(30))

    def peak(num_pairs):
        tracemalloc.start()
        store = build_store(
            tmp_path / "train",
            (Pair(line, sentence + str(line), sentence) for line in range(1, num_pairs + 1)),
            encode={"src": lambda s: [token_ids] * len(s), "tgt": lambda s: [token_ids] * len(s)},
            vocab_size={"src": 50, "tgt": 50},
            pair_filter=PairFilter(100),
            fingerprint="",
        )
        assert len(store) == num_pairs
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(500)
    offsets = 3 * 8  # bytes per pair: where it starts on each side, and its line
    assert peak(21_000) - peak(1000) < 20_000 * offsets * 1.1


@pytest.fixture
def text_files(tmp_path):
    def text_files(*contents):
        paths = [tmp_path / f"{i}.txt" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return [str(path) for path in paths]

    return text_files


def test_the_fingerprint_is_that_of_lines_and_settings_not_of_names(text_files, tmp_path):
    files = text_files(b"a\nb\n", b"c\n")
    settings = {"max_length": 5, "tokenizers": {"src": "x"}}
    original = fingerprint(files, settings)
    for path, renamed in zip(files, ("first.gz", "second"), strict=True):
        content = (tmp_path / path).read_bytes()
        zipped = gzip.compress(content) if renamed.endswith(".gz") else content
        (tmp_path / renamed).write_bytes(zipped)
    elsewhere = [str(tmp_path / "first.gz"), str(tmp_path / "second")]
    assert fingerprint(elsewhere, dict(reversed(settings.items()))) == original
    others = {
        fingerprint(files, {**settings, "max_length": 6}),
        fingerprint(files, {**settings, "tokenizers": {"src": "y"}}),
        fingerprint(files[::-1], settings),
        fingerprint(text_files(b"a\nB\n", b"c\n"), settings),
        fingerprint(text_files(b"a\nb\n", b"d\n"), settings),
        fingerprint(text_files(b"a\n", b"b\nc\n"), settings),
        fingerprint(text_files(b"a\nb\n\n", b"c\n"), settings),
    }
    assert len(others) == 7
    assert original not in others


def test_a_file_without_a_fingerprint_is_named(text_files, tmp_path):
    with pytest.raises(ConfigError, match="none: cannot be read: No such file or directory"):
        fingerprint([str(tmp_path / "none")], {})
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"hello\n" * 100)[:-10])
    with pytest.raises(DataError, match=r"broken\.gz:\d+: cannot be read further"):
        fingerprint([str(tmp_path / "broken.gz")], {})


def test_pairs_to_leave_out_are_counted_and_not_stored(tmp_path):
    pairs = [Pair(1, "4", "5"), Pair(2, "6", "7", is_valid=False), Pair(3, "8 1", "1 9 1")]
    findings = Findings()
    store = build_store(
        tmp_path / "train",
        pairs,
        encode=dict.fromkeys(
            ("src", "tgt"), lambda texts: [list(map(int, t.split())) for t in texts]
        ),
        vocab_size={"src": 100, "tgt": 100},
        pair_filter=PairFilter(10),
        fingerprint="",
        findings=findings,
    )
    assert store.lines.tolist() == [1, 3]
    assert str(store.counts) == ("2 of 3 pairs kept; dropped 1 not valid UTF-8 (first at line 2)")
    assert findings.src.unknown == UnknownTokens(num_tokens=3, num_unknown=1, first_line=3)
    assert findings.tgt.unknown.share == 2 / 4


def test_few_long_pairs_are_tokenised_at_a_time(monkeypatch):
    monkeypatch.setattr(nmt.data.store, "CHUNK", 4)
    monkeypatch.setattr(nmt.data.store, "CHUNK_CHARACTERS", 20)
    lengths = [1, 1, 1, 1, 1, 30, 1, 9, 9, 9]
    pairs = [Pair(line, "x" * length, "y") for line, length in enumerate(lengths, 1)]
    chunks = list(nmt.data.store.chunks(pairs))
    assert [pair for chunk in chunks for pair in chunk] == pairs
    assert [len(chunk) for chunk in chunks] == [4, 2, 3, 1]


def test_the_fingerprint_knows_what_is_done_with_invalid_lines(text_files):
    files = text_files(b"a\n\xff\n", b"c\nd\n")
    replaced, skipped = fingerprint(files, {}, "replace"), fingerprint(files, {}, "skip")
    assert replaced != skipped
    assert replaced == fingerprint(text_files("a\n\ufffd\n".encode(), b"c\nd\n"), {})
    with pytest.raises(DataError):
        fingerprint(text_files(b"a\n\xff\n", b"c\nd\n"), {})
    valid = text_files(b"a\n", b"c\n")
    assert len({fingerprint(valid, {}, policy) for policy in ("strict", "replace", "skip")}) == 1

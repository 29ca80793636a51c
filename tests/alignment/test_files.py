import json
import math
from contextlib import suppress
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest

from nmt.alignment.files import JSONLWriter, NPZWriter, PharaohWriter, SVGWriter
from nmt.alignment.html import HTMLWriter
from nmt.alignment.pair import hard_links
from nmt.errors import ConfigError
from nmt.text.lines import json_line

FILE_WRITERS = [JSONLWriter, NPZWriter, PharaohWriter, HTMLWriter]
NASTY = [
    "밥을",
    '"quoted"',
    "back\\slash",
    "</script>",
    "a\u2028b\u2029c",
    "x\x85y",
    "t\tz",
    "\ud800",
]


@pytest.mark.parametrize("writer", FILE_WRITERS)
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failed_body_leaves_what_was_there(writer, before, pair, tmp_path):
    path = tmp_path / "out"
    if before:
        path.write_bytes(before)
    with suppress(KeyError), writer(path) as output:
        output.write(pair)
        raise KeyError
    assert (path.read_bytes() if path.exists() else None) == before
    assert list(tmp_path.iterdir()) == ([path] if before else [])


@pytest.mark.parametrize("writer", FILE_WRITERS)
def test_the_same_pairs_give_the_same_bytes(writer, pair, blank_of, tmp_path):
    for name in "ab":
        with writer(tmp_path / name) as output:
            output.write(pair)
            output.write(blank_of(line=2))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("writer", FILE_WRITERS)
def test_a_missing_folder_is_an_error(writer, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"), writer(tmp_path / "no" / "out"):
        pass


def test_jsonl_has_one_object_a_line(pair_of, blank_of, tmp_path):
    pair = pair_of(line=1, score=-0.25)
    with JSONLWriter(tmp_path / "out") as output:
        output.write(pair)
        output.write(blank_of(line=2))
    first, second = map(json.loads, (tmp_path / "out").read_text("utf-8").split("\n")[:-1])
    assert list(first) == [
        "line",
        "rank",
        "score",
        "src_tokens",
        "tgt_tokens",
        "weights",
        "links",
    ]
    assert (first["line"], first["rank"], first["score"]) == (1, 1, -0.25)
    assert (first["src_tokens"], first["tgt_tokens"]) == (pair.src_tokens, pair.tgt_tokens)
    assert first["weights"][0] == [0.5, 0.3, 0.05, 0.05, 0.04, 0.06]
    assert first["links"] == [list(link) for link in hard_links(pair)]
    assert second == {
        "line": 2,
        "rank": 1,
        "src_tokens": [],
        "tgt_tokens": [],
        "weights": [],
        "links": [],
    }


def test_jsonl_weights_have_six_digits_and_sum_to_one(word_pair, tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(101), size=3)
    pair = word_pair(["a"] * 100, ["b"] * 2, weights)
    with JSONLWriter(tmp_path / "out") as output:
        output.write(pair)
    found = np.array(json.loads((tmp_path / "out").read_text("utf-8"))["weights"])
    np.testing.assert_allclose(found, weights, atol=6e-7)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-4)
    assert (found == found.round(6)).all()


def test_jsonl_keeps_scripts_readable_and_every_object_on_its_line(word_pair, tmp_path):
    with JSONLWriter(tmp_path / "out") as output:
        output.write(word_pair(NASTY, ["먹었다"]))
    text = (tmp_path / "out").read_text("utf-8")
    assert len(text.splitlines()) == 1
    assert "먹었다" in text
    assert json.loads(text)["src_tokens"] == [*NASTY, "</s>"]


def test_json_holds_no_numbers_that_json_does_not_know():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line(math.nan)


@pytest.mark.parametrize("path", [None, "-"])
def test_jsonl_and_pharaoh_go_to_stdout(path, pair, capsys):
    with JSONLWriter(path) as output:
        output.write(pair)
    with PharaohWriter(path) as output:
        output.write(pair)
    first, second = capsys.readouterr().out.split("\n")[:-1]
    assert json.loads(first)["line"] == 1
    assert second == "0-0 2-3 4-1 4-2"


def test_npz_loads_without_pickle(pair_of, blank_of, tmp_path):
    best, second = pair_of(line=3, score=-0.25), pair_of(line=3, rank=2)
    with NPZWriter(tmp_path / "out.npz") as output:
        output.write(best)
        output.write(second)
        output.write(blank_of(line=4))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        parts = ["weights", "src_tokens", "tgt_tokens", "links"]
        assert list(archive) == [
            *(f"3.1/{part}" for part in [*parts, "score"]),
            *(f"3.2/{part}" for part in parts),
            *(f"4.1/{part}" for part in parts),
        ]
        np.testing.assert_array_equal(archive["3.1/weights"], best.weights)
        assert archive["3.1/weights"].dtype == np.float32
        assert archive["3.1/src_tokens"].tolist() == best.src_tokens
        assert archive["3.2/tgt_tokens"].tolist() == best.tgt_tokens
        assert archive["3.1/links"].tolist() == [list(link) for link in hard_links(best)]
        assert archive["3.1/score"] == -0.25
        assert archive["4.1/weights"].shape == (0, 0)
        assert archive["4.1/links"].shape == (0, 2)
        assert archive["4.1/links"].dtype == np.int32
        assert archive["4.1/src_tokens"].dtype.kind == "U"


def test_npz_carries_no_time_of_day(pair, tmp_path):
    with NPZWriter(tmp_path / "out.npz") as output:
        output.write(pair)
    with ZipFile(tmp_path / "out.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_pharaoh_line_n_holds_the_links_of_line_n(pair_of, blank_of, tmp_path):
    with PharaohWriter(tmp_path / "out") as output:
        output.write(pair_of(line=1))
        output.write(pair_of(line=1, rank=2))
        output.write(blank_of(line=2))
        output.write(pair_of(line=5))
    links = "0-0 2-3 4-1 4-2"
    assert (tmp_path / "out").read_text("utf-8") == f"{links}\n\n\n\n{links}\n"


def test_pharaoh_lines_do_not_go_back(pair_of, tmp_path):
    with PharaohWriter(tmp_path / "out") as output:
        output.write(pair_of(line=2))
        with pytest.raises(ValueError, match=r"^line 2 comes after line 2$"):
            output.write(pair_of(line=2))


def test_svg_pictures_are_named_by_line_and_rank(pair_of, blank_of, tmp_path):
    with SVGWriter(tmp_path / "pictures") as output:
        output.write(pair_of(line=1))
        output.write(pair_of(line=1, rank=2))
        output.write(blank_of(line=2))
        output.write(pair_of(line=1234567))
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "000001-2.svg",
        "000001.svg",
        "1234567.svg",
    ]
    assert (tmp_path / "pictures" / "000001.svg").read_text("utf-8").startswith("<svg")


def test_svg_pictures_may_be_added_to_a_folder(pair, tmp_path):
    (tmp_path / "mine").touch()
    with SVGWriter(tmp_path) as output:
        output.write(replace(pair, line=2))
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "000002.svg"}


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (NPZWriter, "standard output: cannot hold an NPZ archive; name a file"),
        (SVGWriter, "standard output: cannot hold pictures; name a folder"),
    ],
)
@pytest.mark.parametrize("path", [None, "-"])
def test_archives_and_folders_do_not_go_to_stdout(writer, message, path):
    with pytest.raises(ConfigError) as error, writer(path):
        pass
    assert str(error.value) == message


def test_a_file_is_no_folder_for_pictures(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigError) as error, SVGWriter(path):
        pass
    assert str(error.value) == f"{path}: is a file, but must be a folder; name another one"


def test_a_folder_for_pictures_needs_its_parent(tmp_path):
    path = tmp_path / "no" / "pictures"
    with pytest.raises(ConfigError) as error, SVGWriter(path):
        pass
    assert str(error.value) == (
        f"{path}: cannot be made: No such file or directory; name a folder in an existing one"
    )

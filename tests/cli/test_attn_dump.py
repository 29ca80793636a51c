"""`nmt attn-dump`: the attention of found and of given translations, in every format."""

import json
import re

import numpy as np
import pytest

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
OTHER, OTHER_TRANSLATION = "지우는 물을 보았다", "Zoé saw water"


@pytest.fixture
def dump(nmt, tiny):
    """Runs `nmt attn-dump` with the tiny model."""

    def run(src, *options, stdin=""):
        return nmt("attn-dump", "--model", tiny.run, "--src", src, *options, stdin=stdin)

    return run


@pytest.fixture
def rows(dump):
    """The objects that `nmt attn-dump` prints."""

    def run(*args, **kwargs):
        ended = dump(*args, **kwargs)
        assert (ended.code, ended.err) == (0, "")
        return [json.loads(line) for line in ended.lines]

    return run


@pytest.fixture
def files(write):
    write("s", f"{SENTENCE}\n\n{OTHER}\n")
    write("t", f"{TRANSLATION}\n\n{OTHER_TRANSLATION}\n")


def page_data(page):
    """The pairs that an HTML page holds."""
    (data,) = re.findall(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(data)["pairs"]


def words_of(tokens):
    """Of each token the number of its word: `▁` starts one, `</s>` is one."""
    starts = [token.startswith("▁") or token == "</s>" for token in tokens]
    return np.cumsum(starts) - 1


def test_the_attention_of_found_translations_goes_to_stdout(rows, files):
    first, blank, third = rows("s")
    assert [row["line"] for row in (first, blank, third)] == [1, 2, 3]
    assert list(first) == [
        *("line", "rank", "score", "src_tokens", "tgt_tokens", "weights", "links")
    ]
    assert blank["src_tokens"] == blank["tgt_tokens"] == blank["weights"] == blank["links"] == []
    for row, src, tgt in (
        (first, SENTENCE, TRANSLATION),
        (third, OTHER, OTHER_TRANSLATION),
    ):
        assert row["src_tokens"][-1] == row["tgt_tokens"][-1] == "</s>"
        assert "".join(row["src_tokens"][:-1]).replace("▁", " ").strip() == src
        assert "".join(row["tgt_tokens"][:-1]).replace("▁", " ").strip() == tgt
        weights = np.array(row["weights"])
        assert weights.shape == (len(row["tgt_tokens"]), len(row["src_tokens"]))
        assert weights.sum(1) == pytest.approx(1, abs=1e-4)
        assert weights.min() >= 0


def test_found_and_given_translations_have_the_same_attention(rows, files):
    for found, given in zip(rows("s"), rows("s", "--tgt", "t"), strict=True):
        assert found["src_tokens"] == given["src_tokens"]
        assert found["tgt_tokens"] == given["tgt_tokens"]
        assert np.array(found["weights"]) == pytest.approx(np.array(given["weights"]), abs=1e-5)


def test_given_translations_need_not_be_good(rows, write):
    write("s", f"{SENTENCE}\n")
    write("t", "we saw flowers\n")
    (row,) = rows("s", "--tgt", "t")
    assert "".join(row["tgt_tokens"]) == "▁we▁saw▁flowers</s>"


def test_n_best_gives_a_row_per_translation(nmt, tiny, rows, files):
    found = nmt("translate", "-m", tiny.run, "-i", "s", "--format", "jsonl", "--n-best", "3")
    expected = [
        (line["line"], rank, hypothesis["tokens"], hypothesis["score"])
        for line in map(json.loads, found.lines)
        for rank, hypothesis in enumerate(line["hypotheses"], 1)
    ]
    dumped = rows("s", "--n-best", "3")
    assert [(row["line"], row["rank"], row["tgt_tokens"]) for row in dumped] == [
        row[:3] for row in expected
    ]
    scores = [row["score"] for row in dumped if "score" in row]
    assert scores == pytest.approx([row[3] for row in expected if row[2]], abs=1e-4)


def test_words_get_the_sum_of_source_and_the_mean_of_target_pieces(rows, files):
    for pieces, words in zip(
        rows("s", "--tgt", "t"), rows("s", "--tgt", "t", "--level", "word"), strict=True
    ):
        if not pieces["weights"]:
            assert words == pieces
            continue
        src_words, tgt_words = words_of(pieces["src_tokens"]), words_of(pieces["tgt_tokens"])
        weights = np.array(pieces["weights"])
        expected = [
            [
                np.mean([weights[t, src_words == i].sum() for t in np.flatnonzero(tgt_words == j)])
                for i in range(src_words[-1] + 1)
            ]
            for j in range(tgt_words[-1] + 1)
        ]
        assert np.array(words["weights"]) == pytest.approx(np.array(expected), abs=1e-4)
    assert words["src_tokens"] == [*OTHER.split(), "</s>"]
    assert words["tgt_tokens"] == [*OTHER_TRANSLATION.split(), "</s>"]


def test_links_are_the_largest_weights_and_none_to_the_end(rows, files):
    for row in rows("s", "--tgt", "t"):
        weights = np.array(row["weights"])
        largest = [(int(weights[t].argmax()), t) for t in range(max(len(weights) - 1, 0))]
        assert [tuple(link) for link in row["links"]] == [
            (src, tgt) for src, tgt in largest if src != len(row["src_tokens"]) - 1
        ]


def test_word_links_are_the_true_ones_of_the_corpus(dump, tiny):
    ended = dump(
        *(tiny.path("test.ko"), "--tgt", tiny.path("test.en"), "--level", "word"),
        *("--pharaoh", "-"),
    )
    true = [" ".join(sorted(line.split())) for line in tiny.lines("test.gold")]
    right = sum(a == b for a, b in zip(ended.lines, true, strict=True))
    assert right >= 24  # of 30; they are learned, not computed


@pytest.mark.parametrize("level", ["subword", "word"])
@pytest.mark.parametrize("given", [True, False])
def test_all_formats_hold_the_same(dump, rows, files, tmp_path, level, given):
    options = ["--level", level, *(["--tgt", "t"] if given else ["--n-best", "2"])]
    expected = rows("s", *options)
    ended = dump(
        *("s", *options, "--jsonl", "j", "--npz", "n.npz", "--pharaoh", "p"),
        *("--html", "h.html", "--svg", "pictures"),
    )
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    content = (tmp_path / "j").read_text(encoding="utf-8")
    assert [json.loads(line) for line in content.split("\n")[:-1]] == expected

    archive = np.load(tmp_path / "n.npz", allow_pickle=False)
    assert {name.split("/")[0] for name in archive} == {
        f"{row['line']}.{row['rank']}" for row in expected
    }
    for row in expected:
        name = f"{row['line']}.{row['rank']}"
        for key in ("src_tokens", "tgt_tokens", "links"):
            assert archive[f"{name}/{key}"].tolist() == row[key]
        weights = np.array(row["weights"]).reshape(archive[f"{name}/weights"].shape)
        assert archive[f"{name}/weights"] == pytest.approx(weights, abs=1e-6)

    links = [sorted(map(tuple, row["links"])) for row in expected if row["rank"] == 1]
    assert (tmp_path / "p").read_text().split("\n") == [
        *(" ".join(f"{src}-{tgt}" for src, tgt in line) for line in links),
        "",
    ]

    page = (tmp_path / "h.html").read_text(encoding="utf-8")
    assert f'"words_first":{json.dumps(level == "word")}' in page
    pairs = page_data(page)
    assert [(pair["line"], pair["rank"]) for pair in pairs] == [
        (row["line"], row["rank"]) for row in expected
    ]
    for pair, row in zip(pairs, expected, strict=True):
        view = pair["views"][-1 if level == "word" else 0]
        assert (view["src"], view["tgt"]) == (row["src_tokens"], row["tgt_tokens"])
        assert view["links"] == row["links"]
        weights = np.array(row["weights"]).reshape(np.shape(view["weights"]))
        assert np.array(view["weights"]) / 1000 == pytest.approx(weights, abs=6e-4)

    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {
        f"{row['line']:06}{'' if row['rank'] == 1 else '-2'}.svg"
        for row in expected
        if row["src_tokens"]
    }


@pytest.mark.parametrize("option", ["--jsonl", "--pharaoh", "--html"])
def test_a_text_format_can_go_to_stdout(dump, files, tmp_path, option):
    direct = dump("s", option, "-")
    assert dump("s", option, "kept").out == ""
    assert (tmp_path / "kept").read_text(encoding="utf-8") == direct.out
    assert direct.code == 0


def test_standard_input_can_be_read(rows, files):
    assert rows("-", stdin=f"{SENTENCE}\n\n{OTHER}") == rows("s")


def test_a_line_of_html_is_text_on_the_page(dump, write, tmp_path):
    evil = "<script>alert(1)</script> & </pre>"
    write("s", f"{evil}\n")
    write("t", f"{TRANSLATION} <!--\n")
    assert dump("s", "--tgt", "t", "--html", "page.html", "--svg", "svg").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "</pre>" not in page.split("<noscript>")[0]
    assert "<!--" not in page
    (pair,) = page_data(page)
    assert (pair["src"], pair["tgt"]) == (evil, f"{TRANSLATION} <!--")
    assert "<script" not in (tmp_path / "svg/000001.svg").read_text(encoding="utf-8")


def test_invalid_utf8_and_odd_line_ends_keep_the_lines(dump, write):
    write("s", b"\xef\xbb\xbfa \xff\r\n" + "어제\u2028나는\r\n".encode())
    ended = dump("s", "--level", "word")
    assert ended.code == 0
    assert [json.loads(line)["src_tokens"] for line in ended.lines] == [
        ["a", "\ufffd", "</s>"],
        ["어제", "나는", "</s>"],
    ]
    assert ended.err == (
        "warning: s: lines that are not valid UTF-8: 1 (the first is line 1); "
        "their bad bytes were read as U+FFFD\n"
    )


def test_a_pair_that_is_too_long_for_a_matrix_is_left_empty(dump, write):
    write("s", f"{SENTENCE}\n" * 2)
    write("t", f"{TRANSLATION * 500}\n{TRANSLATION}\n")
    ended = dump("s", "--tgt", "t")
    assert ended.code == 0
    assert [bool(json.loads(line)["weights"]) for line in ended.lines] == [False, True]
    assert ended.err == (
        "warning: s:1: the pair has more than 2000 tokens on a side, too many for a matrix; it is "
        "left empty\n"
    )


def test_empty_files_give_empty_outputs(dump, write, tmp_path):
    write("s", "")
    ended = dump("s", "--pharaoh", "p", "--html", "h", "--npz", "n")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (tmp_path / "p").read_text() == ""
    assert page_data((tmp_path / "h").read_text(encoding="utf-8")) == []


def test_a_model_without_attention_is_refused(nmt, tiny, files):
    options = ["model.attention.score=none", "training.max_steps=1", "validation.every=1"]
    options += ["run_dir=none", "training.warmup_steps=0", "decoding.max_length_ratio=0.1"]
    trained = nmt("train", "-c", tiny.config, *(arg for o in options for arg in ("--set", o)))
    assert trained.code == 0, trained.err
    ended = nmt("attn-dump", "--model", "none", "--src", "s")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: none: has no attention (model.attention.score is none), so there is nothing to "
        "dump; train it with a score function\n"
    )

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from nmt.alignment.html import HTMLWriter
from nmt.alignment.pair import hard_links, to_words

VOID = {"meta", "input", "br", "link", "img", "rect", "path"}


class Page(HTMLParser):
    """Checks that elements close in order, and keeps scripts, texts and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    @property
    def data(self):
        return json.loads(self.texts["script"][0])


@pytest.fixture
def page(tmp_path):
    def write(*pairs, **settings):
        path = tmp_path / "page.html"
        with HTMLWriter(path, **settings) as output:
            for pair in pairs:
                output.write(*pair) if isinstance(pair, tuple) else output.write(pair)
        return path.read_text("utf-8")

    return write


def test_the_data_of_the_page_are_the_pairs(page, pair_of, blank_of):
    pair = pair_of(line=2, rank=3, score=-0.123456)
    data = Page(page(pair, blank_of(line=5), src_lang="ko", tgt_lang="en")).data
    assert (data["src_lang"], data["tgt_lang"], data["words_first"]) == ("ko", "en", False)
    first, blank = data["pairs"]
    assert (first["line"], first["rank"], first["score"]) == (2, 3, -0.1235)
    assert (first["src"], first["tgt"]) == ("나는 밥을 먹었다", "I ate rice")
    for view, level in zip(first["views"], [pair, to_words(pair)], strict=True):
        assert (view["src"], view["tgt"]) == (level.src_tokens, level.tgt_tokens)
        np.testing.assert_allclose(np.array(view["weights"]) / 1000, level.weights, atol=5.1e-4)
        assert view["links"] == [list(link) for link in hard_links(level)]
        assert view["sure"] == view["possible"] == []
    assert "score" not in blank
    assert blank["views"] == [
        {"src": [], "tgt": [], "weights": [], "links": [], "sure": [], "possible": []}
    ]


def test_a_pair_of_words_has_one_view(page, pair):
    (row,) = Page(page(to_words(pair))).data["pairs"]
    assert len(row["views"]) == 1


def test_gold_links_are_given_at_both_levels(page, pair):
    (row,) = Page(page((pair, {(0, 0)}, {(0, 0), (2, 1)}))).data["pairs"]
    subwords, words = row["views"]
    assert (words["sure"], words["possible"]) == ([[0, 0]], [[2, 1]])
    assert (subwords["sure"], subwords["possible"]) == ([[0, 0], [1, 0]], [[4, 1], [4, 2]])


def test_a_page_without_pairs_is_complete(page):
    assert Page(page()).data["pairs"] == []


def test_what_a_user_writes_cannot_leave_its_place(page, word_pair):
    nasty = [
        "</script>",
        "<script>alert(1)</script>",
        "<!--",
        "]]>",
        '"',
        "'",
        "&lt;",
        "\\",
        "밥을",
    ]
    breaks = ["a\u2028b", "c\u2029d", "e\x85f"]
    text = page(
        word_pair(nasty + breaks, ["</noscript></svg>"]),
        title="</title><script>'\"&",
        src_lang='"><script>',
    )
    parsed = Page(text)
    assert parsed.data["pairs"][0]["views"][0]["src"] == [*nasty, *breaks, "</s>"]
    assert parsed.data["src_lang"] == '"><script>'
    assert parsed.texts["title"][0] == parsed.texts["h1"][0] == "</title><script>'\"&"
    assert len(parsed.texts["script"]) == 2
    assert not set("<>&") & set(parsed.texts["script"][0])
    assert text.count("</noscript>") == 1
    assert not any(character in text.split("<noscript>")[0] for character in "\u2028\u2029\x85")


def test_the_page_does_not_mistake_a_title_or_a_token_for_its_own_marks(page, word_pair):
    marks = ["__DATA__", "__PICTURES__", "__TITLE__"]
    parsed = Page(page(word_pair(marks, ["x"]), title=" ".join(marks)))
    assert parsed.texts["h1"][0] == " ".join(marks)
    assert parsed.data["pairs"][0]["src"] == " ".join(marks)


def test_the_page_loads_nothing(page, pair):
    text = page(pair)
    assert re.findall(r"https?://[^\"' ]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"src=|href|@import|url\(|fetch|XMLHttpRequest|import ", text)
    assert (
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    ) in (Page(text).attributes)


def test_the_page_says_that_it_is_utf_8_and_keeps_hangul_readable(page, pair):
    text = page(pair)
    assert text.index('<meta charset="utf-8">') < 1024
    assert "밥을" in text


def test_the_first_pairs_can_be_read_without_a_script(page, pair_of, blank_of):
    text = page(blank_of(1), *(pair_of(line=line) for line in range(2, 7)))
    without_script = text.split("<noscript>")[1].split("</noscript>")[0]
    assert without_script.count("<svg") == 3
    assert "▁먹었다" in without_script
    assert "(blank line)" not in without_script


def test_a_row_of_data_is_written_at_once(pair_of, tmp_path):
    with HTMLWriter(tmp_path / "page.html") as output:
        written = []
        for line in range(1, 5):
            output.write(pair_of(line=line))
            written.append(output._stream.tell())
    assert len({after - before for before, after in pairwise(written)}) == 1


def test_pairs_of_subwords_may_be_shown_as_words_first(page, pair):
    assert Page(page(pair, words_first=True)).data["words_first"] is True

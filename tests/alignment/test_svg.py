from dataclasses import replace
from xml.etree import ElementTree

import pytest

from nmt.alignment.pair import to_words
from nmt.alignment.svg import CELL, heatmap_svg, shorten, text_width

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def cells(svg):
    """Title, column and row (in cells from the first) and opacity of every shaded cell."""
    nodes = [n for n in ElementTree.fromstring(svg).iter(f"{SVG}rect") if len(n)]
    ground = next(n for n in ElementTree.fromstring(svg) if n.get("fill") == "#f1f4f9")
    x, y = int(ground.get("x")), int(ground.get("y"))
    return {
        node[0].text: (
            (int(node.get("x")) - x) / CELL,
            (int(node.get("y")) - y) / CELL,
            float(node.get("fill-opacity")),
        )
        for node in nodes
    }


def outlines(svg):
    """Whether each outlined cell has dashes."""
    nodes = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [bool(n.get("stroke-dasharray")) for n in nodes if n.get("stroke")]


def test_source_tokens_come_first_and_target_tokens_second(pair):
    assert texts(heatmap_svg(pair)) == pair.src_tokens + pair.tgt_tokens


def test_a_cell_is_shaded_by_its_weight_and_tells_it(pair):
    found = cells(heatmap_svg(pair))
    assert found["▁먹었다 → ▁a: 0.500"] == (4, 1, 0.5)
    assert found["▁나 → ▁I: 0.500"] == (0, 0, 0.5)
    assert len(found) == (pair.weights > 0).sum()


def test_a_weight_that_cannot_be_seen_is_not_drawn(word_pair):
    svg = heatmap_svg(word_pair(["a"], ["x"], [[0.996, 0.004], [0, 1]]))
    assert list(cells(svg)) == ["a → x: 0.996", "</s> → </s>: 1.000"]


def test_gold_links_are_outlined_sure_ones_with_a_line_possible_ones_with_dashes(pair):
    svg = heatmap_svg(to_words(pair), sure={(0, 0)}, possible={(0, 0), (1, 2)})
    assert outlines(svg) == [False, True]
    assert outlines(heatmap_svg(pair)) == []
    # two pieces each: 나 는 → I, 밥 을 → rice
    assert outlines(heatmap_svg(pair, {(0, 0)}, {(1, 2)})) == [False, False, True, True]


def test_what_a_user_writes_is_escaped(word_pair):
    tokens = ["<script>alert(1)</script>", '"', "'", "&amp;", "밥을"]
    svg = heatmap_svg(word_pair(tokens, ["</svg>"]))
    assert "<script" not in svg
    assert svg.count("</svg>") == 1
    assert texts(svg) == [*map(shorten, tokens), "</s>", "</svg>", "</s>"]


@pytest.mark.parametrize("character", ["\x00", "\x1f", "\ud800", "\uffff"])
def test_what_xml_forbids_is_replaced(word_pair, character):
    svg = heatmap_svg(word_pair([f"a{character}b"], ["x"]))
    assert texts(svg)[0] == "a\ufffdb"
    svg.encode()


def test_a_long_token_is_shortened_in_its_label_but_not_in_its_title(word_pair):
    long = "x" * 100
    svg = heatmap_svg(word_pair([long], ["y"]))
    assert texts(svg)[0] == "x" * 23 + "…"
    assert f"{long} → y: 0.500" in cells(svg)


def test_a_picture_has_a_white_ground_of_its_own_size(pair):
    root = ElementTree.fromstring(heatmap_svg(pair))
    assert root[0].get("fill") == "#ffffff"
    for name in ("width", "height"):
        assert root[0].get(name) == root.get(name)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"


def test_a_picture_loads_nothing(pair):
    svg = heatmap_svg(pair)
    assert svg.count("http") == 1  # the name space
    assert not any(word in svg for word in ("href", "url(", "@import", "src="))


def test_labels_have_room(pair):
    wide = replace(pair, tgt_tokens=["W" * 20, *pair.tgt_tokens[1:]])
    narrow_width, wide_width = (
        int(ElementTree.fromstring(heatmap_svg(each)).get("width")) for each in (pair, wide)
    )
    assert wide_width - narrow_width == pytest.approx(
        text_width("W" * 20) - max(map(text_width, pair.tgt_tokens)), abs=1
    )


def test_hangul_is_as_wide_as_high_and_marks_have_no_width():
    assert text_width("밥을") == 2 * text_width("밥") == 28
    assert text_width("e\u0301") == text_width("e")


def test_a_blank_line_is_a_small_picture(blank_of):
    assert texts(heatmap_svg(blank_of())) == ["(blank line)"]

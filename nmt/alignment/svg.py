"""A standalone heat map of one pair: source tokens on top, target tokens on the left."""

import re
import unicodedata
from collections.abc import Collection
from html import escape

from nmt.alignment.pair import AlignedPair, Link, token_links

CELL = 26
FONT_SIZE = 14
MARGIN = 16
GAP = 7  # between a label and the cells
SLANT = 0.7071  # sine and cosine of the 45° by which source labels are turned
MAX_LABEL = 24
MIN_WEIGHT = 0.005  # less cannot be seen

FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK KR', "
    "'Apple SD Gothic Neo', 'Malgun Gothic', 'Hiragino Sans', 'Microsoft YaHei', sans-serif"
)

# Characters that XML forbids, even escaped
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def heatmap_svg(
    pair: AlignedPair,
    sure: Collection[Link] = (),
    possible: Collection[Link] = (),
) -> str:
    """The attention of one pair as the text of an SVG file, on a white ground of its own.

    Darker is more; a cell's title tells its tokens and its weight. Gold links between words, if
    given, are outlined: sure ones with a line, possible ones with dashes.
    """
    if not pair.src_tokens:
        return picture(2 * MARGIN + 90, 2 * MARGIN + FONT_SIZE, [label("(blank line)", 16, 27)])
    src_labels = [shorten(token) for token in pair.src_tokens]
    tgt_labels = [shorten(token) for token in pair.tgt_tokens]
    src_widths = [text_width(text) for text in src_labels]
    left = round(MARGIN + max(map(text_width, tgt_labels)) + GAP)
    top = round(MARGIN + SLANT * (max(src_widths) + FONT_SIZE) + GAP)
    columns = [left + CELL * column for column in range(len(src_labels))]
    rows = [top + CELL * row for row in range(len(tgt_labels))]
    ends = [
        x + CELL / 2 + SLANT * (width + GAP) for x, width in zip(columns, src_widths, strict=True)
    ]
    right = max(columns[-1] + CELL, *ends)
    bottom = rows[-1] + CELL

    size = f'width="{CELL * len(columns)}" height="{CELL * len(rows)}"'
    parts = [f'<rect x="{left}" y="{top}" {size} fill="#f1f4f9"/>']
    for text, x in zip(src_labels, columns, strict=True):
        at = f"{x + CELL / 2 + 4:.1f} {top - GAP:.1f}"
        parts.append(label(text, 0, 0, f'transform="translate({at}) rotate(-45)"'))
    for text, y in zip(tgt_labels, rows, strict=True):
        parts.append(label(text, left - GAP, y + CELL / 2 + 5, 'text-anchor="end"'))
    parts.append('<g fill="#1d4ed8">')
    for row, y in enumerate(rows):
        for column, x in enumerate(columns):
            weight = float(pair.weights[row, column])
            if weight >= MIN_WEIGHT:
                title = f"{pair.src_tokens[column]} → {pair.tgt_tokens[row]}: {weight:.3f}"
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" '
                    f'fill-opacity="{weight:.3f}"><title>{xml_text(title)}</title></rect>'
                )
    parts.append("</g>")
    parts.append(grid(columns, rows, right=columns[-1] + CELL, bottom=bottom))
    for column, row in token_links(pair, {*sure, *possible}):
        is_sure = (pair.src_word_ids[column], pair.tgt_word_ids[row]) in sure
        dashes = "" if is_sure else ' stroke-dasharray="3 3"'
        parts.append(
            f'<rect x="{columns[column] + 2}" y="{rows[row] + 2}" width="{CELL - 4}" '
            f'height="{CELL - 4}" rx="3" fill="none" stroke="#ea580c" stroke-width="2"{dashes}/>'
        )
    return picture(right + MARGIN, bottom + MARGIN, parts)


def picture(width: float, height: float, parts: list[str]) -> str:
    """An SVG of this size with these parts on a white ground."""
    size = f'width="{width:.0f}" height="{height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONTS}" '
            f'font-size="{FONT_SIZE}" fill="#1f2937">',
            f'<rect {size} rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def label(text: str, x: float, y: float, attributes: str = "") -> str:
    """A text element."""
    return f'<text x="{x}" y="{y}" {attributes}>{xml_text(text)}</text>'


def grid(columns: list[int], rows: list[int], right: int, bottom: int) -> str:
    """White lines between the cells."""
    lines = [f"M{x} {rows[0]}V{bottom}" for x in columns[1:]]
    lines += [f"M{columns[0]} {y}H{right}" for y in rows[1:]]
    return f'<path d="{"".join(lines)}" stroke="#ffffff" fill="none"/>'


def shorten(text: str) -> str:
    """The text, or its beginning and an ellipsis if it is too long for a label."""
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"


def text_width(text: str) -> float:
    """About how wide a text is drawn; it is drawn elsewhere, so its font is not known here."""
    return FONT_SIZE * sum(map(character_width, text))


def character_width(character: str) -> float:
    """About how wide a character is, in units of the font size."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    return 0.7 if character.isupper() or character in "mwMW" else 0.56


def xml_text(text: str) -> str:
    """The text, escaped for XML and HTML; what XML forbids becomes U+FFFD."""
    return escape(FORBIDDEN.sub("\ufffd", text))

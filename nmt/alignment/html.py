"""One self-contained page that shows the attention of every sentence pair."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from nmt.alignment.files import PairWriter
from nmt.alignment.pair import (
    AlignedPair,
    Link,
    hard_links,
    is_word_level,
    to_words,
    token_links,
)
from nmt.alignment.svg import heatmap_svg
from nmt.text.lines import json_line, open_output

QUANTA = 1000
"""Weights are stored as whole numbers of this part: enough to see, and short."""
NUM_WITHOUT_SCRIPT = 3
"""So many pairs are pictures that can be read without JavaScript."""

# With these escaped, no token can end the script element or start a comment in it
HTML_IN_JSON = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


class HTMLWriter(PairWriter):
    """A page with a list of the pairs and the heat map of the selected one; `None`, `-`: stdout.

    The page loads nothing from anywhere. It holds the data as JSON in a script element, one pair
    a line, and shows subwords and words if a pair has both.

    Args:
        path: the file.
        title: heading and title of the page.
        src_lang: language code of the source, which decides between fonts; or nothing.
        tgt_lang: language code of the target.
        words_first: whether pairs of subwords are shown as words until the reader switches.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        title: str = "Attention",
        src_lang: str = "",
        tgt_lang: str = "",
        words_first: bool = False,
    ) -> None:
        super().__init__(path)
        self.title = title
        self.settings = {"src_lang": src_lang, "tgt_lang": tgt_lang, "words_first": words_first}

    @contextmanager
    def _open(self) -> Iterator[None]:
        self._pictures: list[str] = []
        self._separator = "\n"
        page = files("nmt.alignment").joinpath("page.html").read_text(encoding="utf-8")
        head, tail = page.split("__DATA__")
        with open_output(self.path) as self._stream:
            self._stream.write(head.replace("__TITLE__", escape(self.title)))
            settings = json_line(self.settings).translate(HTML_IN_JSON).removesuffix("}")
            self._stream.write(settings + ',"pairs":[')
            yield
            self._stream.write("\n]}")
            self._stream.write(tail.replace("__PICTURES__", "\n".join(self._pictures)))

    def write(
        self, pair: AlignedPair, sure: Collection[Link] = (), possible: Collection[Link] = ()
    ) -> None:
        """Add one pair.

        Args:
            pair: the pair.
            sure: sure gold links between its words, outlined in its heat map.
            possible: possible gold links, outlined with dashes.
        """
        row = json_line(page_row(pair, sure, possible)).translate(HTML_IN_JSON)
        self._stream.write(self._separator + row)
        self._separator = ",\n"
        if len(self._pictures) < NUM_WITHOUT_SCRIPT and pair.src_tokens:
            self._pictures.append(heatmap_svg(pair, sure, possible))


def page_row(
    pair: AlignedPair, sure: Collection[Link], possible: Collection[Link]
) -> dict[str, Any]:
    """What the page knows of a pair: the views to switch between, the given one first."""
    views = [page_view(pair, sure, possible)]
    if not is_word_level(pair):
        views.append(page_view(to_words(pair), sure, possible))
    row: dict[str, Any] = {"line": pair.line, "rank": pair.rank}
    if pair.score is not None:
        row["score"] = round(pair.score, 4)
    return row | {"src": " ".join(pair.src_words), "tgt": " ".join(pair.tgt_words), "views": views}


def page_view(
    pair: AlignedPair, sure: Collection[Link], possible: Collection[Link]
) -> dict[str, Any]:
    """Tokens, weights and links at one level; links are (source, target) token positions."""
    sure_links = token_links(pair, sure)
    return {
        "src": pair.src_tokens,
        "tgt": pair.tgt_tokens,
        "weights": np.rint(pair.weights * QUANTA).astype(int).tolist(),
        "links": hard_links(pair),
        "sure": sure_links,
        "possible": [link for link in token_links(pair, possible) if link not in sure_links],
    }

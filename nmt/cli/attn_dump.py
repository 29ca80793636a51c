"""`nmt attn-dump`: what a model looks at while it translates."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nmt.cli.messages import InvalidLines, say, warn
from nmt.cli.options import (
    BatchTokens,
    BeamSize,
    Device,
    LengthPenalty,
    ModelPath,
    NBest,
    Precision,
)

if TYPE_CHECKING:
    from nmt.alignment.pair import AlignedPair
    from nmt.translator import Forced, Translator

WINDOW = 256  # lines worked on at a time


def attn_dump(
    model: ModelPath,
    src: Annotated[str, typer.Option("--src", "-s", help="Source text.")],
    tgt: Annotated[
        str | None,
        typer.Option("--tgt", "-t", help="Given translations; without it, found ones are used."),
    ] = None,
    level: Annotated[
        Literal["subword", "word"], typer.Option(help="Rows and columns are pieces, or words.")
    ] = "subword",
    jsonl: Annotated[str | None, typer.Option(help="JSON object per pair; - is stdout.")] = None,
    npz: Annotated[str | None, typer.Option(help="The same as NumPy arrays.")] = None,
    pharaoh: Annotated[
        str | None, typer.Option(help="Hard links i-j of each line; - is stdout.")
    ] = None,
    html: Annotated[str | None, typer.Option(help="One page with all heat maps.")] = None,
    svg: Annotated[str | None, typer.Option(help="Folder for one picture per pair.")] = None,
    gold: Annotated[
        str | None,
        typer.Option(help="True links (i-j sure, ipj or i?j possible): prints AER."),
    ] = None,
    gold_base: Annotated[
        int | None, typer.Option(help="0 or 1: how the gold file counts its words.")
    ] = None,
    beam_size: BeamSize = None,
    n_best: NBest = 1,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Export the attention of found translations, or of given pairs (--tgt).

    Row t belongs to the predicted token t, the last row to </s>; columns include the source
    </s>; rows sum to one. Without an output option JSON lines go to stdout. Links are 0-based.
    Gold links are between words, so they are scored at word level and need --tgt.
    """
    from nmt.alignment.files import JSONLWriter, NPZWriter, PharaohWriter, SVGWriter
    from nmt.alignment.html import HTMLWriter
    from nmt.alignment.links import Gold, read_gold, score_links
    from nmt.alignment.pair import hard_links, to_words
    from nmt.build.saved import load
    from nmt.errors import ConfigError, DataError

    if gold is not None and (tgt is None or gold_base not in (0, 1)):
        raise ConfigError(
            "attn-dump: --gold needs --tgt, whose words its links join, and --gold-base 0 or 1, "
            "the number of the first word in the gold file"
        )
    truth: Gold | None = None
    if gold is not None and gold_base is not None:
        truth = read_gold(gold, 1 if gold_base else 0)
    translator = load(
        model,
        device=device,
        precision=precision,
        beam_size=beam_size,
        n_best=n_best,
        length_penalty=length_penalty,
        batch_tokens=batch_tokens,
    )
    if not translator.has_attention:
        raise ConfigError(
            f"{model}: has no attention (model.attention.score is none), so there is nothing to "
            "dump; train it with a score function"
        )
    if not any((jsonl, npz, pharaoh, html, svg, gold)):
        jsonl = "-"
    found_links: list[set[tuple[int, int]]] = []
    with ExitStack() as stack:
        plain = [
            stack.enter_context(writer(path))
            for writer, path in (
                (JSONLWriter, jsonl),
                (NPZWriter, npz),
                (PharaohWriter, pharaoh),
                (SVGWriter, svg),
            )
            if path is not None
        ]
        page = stack.enter_context(HTMLWriter(html, title=model)) if html is not None else None
        for pair in aligned_pairs(translator, src, tgt):
            sure, possible = set(), set()
            if truth is not None:
                if pair.line > len(truth.sure):
                    raise DataError(
                        f"{gold} has {len(truth.sure)} lines but {src} has more; "
                        "line N of one must belong to line N of the other"
                    )
                sure, possible = truth.sure[pair.line - 1], truth.possible[pair.line - 1]
                found_links.append(set(hard_links(to_words(pair))))
            shown = to_words(pair) if level == "word" else pair
            for writer in plain:
                writer.write(shown)
            if page is not None:
                page.write(pair if level == "subword" else shown, sure, possible)
    if truth is not None:
        say(str(score_links(found_links, truth.sure, truth.possible)))


def aligned_pairs(translator: "Translator", src: str, tgt: str | None) -> Iterator["AlignedPair"]:
    """The attention over each line: of the given translations, or of those that are found."""
    if tgt is not None:
        from nmt.data.corpus import read_pairs

        pairs = read_pairs(src, tgt)
        while chunk := list(islice(pairs, WINDOW)):
            forced = translator.score([(pair.src, pair.tgt) for pair in chunk])
            for pair, attended in zip(chunk, forced, strict=True):
                yield aligned(src, pair.line, 1, attended, attended.log_prob)
        return
    from nmt.text.lines import decode_lines, open_input

    invalid = InvalidLines()
    with open_input(src) as stream:
        translations = translator.stream(decode_lines(stream, src, invalid), window=WINDOW)
        for line, translation in enumerate(translations, 1):
            for rank, (hypothesis, attended) in enumerate(
                zip(translation.hypotheses, translator.attend(translation), strict=True), 1
            ):
                yield aligned(src, line, rank, attended, hypothesis.score)
    invalid.report(src)


def aligned(name: str, line: int, rank: int, forced: "Forced", score: float) -> "AlignedPair":
    """A pair as the alignment formats want it; one without attention is empty."""
    from nmt.alignment.pair import AlignedPair

    if not forced.weights.size:
        if forced.src.tokens and forced.tgt.tokens:
            warn(f"{name}:{line}: the pair is too long for a matrix, and is left empty")
        return AlignedPair(line, rank, [], [], forced.weights, [], [], [], [])
    return AlignedPair(
        line,
        rank,
        forced.src_tokens,
        forced.tgt_tokens,
        forced.weights,
        [*forced.src.word_ids, len(forced.src.words)],
        [*forced.tgt.word_ids, len(forced.tgt.words)],
        forced.src.words,
        forced.tgt.words,
        score,
    )

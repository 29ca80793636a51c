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
    input_name,
    refuse_ignored,
    refuse_impossible_beam,
    refuse_shared_stream,
)
from nmt.errors import ConfigError

if TYPE_CHECKING:
    from nmt.alignment.links import Gold
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
        typer.Option(help="True links (i-j sure, ipj or i?j possible) to score ours with."),
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
    Gold links are between words, so they are scored at word level and need --tgt. Precision,
    recall and AER go to stdout, or to stderr if an output goes to stdout.
    """
    from nmt.alignment.files import JSONLWriter, NPZWriter, PharaohWriter, SVGWriter
    from nmt.alignment.html import HTMLWriter
    from nmt.alignment.links import score_links
    from nmt.alignment.pair import hard_links, to_words
    from nmt.build.saved import load
    from nmt.text.lines import open_output

    refuse_shared_stream("standard input", src=src, tgt=tgt)
    refuse_shared_stream("standard output", jsonl=jsonl, pharaoh=pharaoh, html=html)
    refuse_impossible_beam(beam_size, n_best)
    if tgt is not None:
        refuse_ignored(
            "--tgt",
            beam_size=beam_size,
            n_best=n_best if n_best > 1 else None,
            length_penalty=length_penalty,
        )
    truth = None if gold is None else read_truth(gold, gold_base, src, tgt)
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
        page = None
        if html is not None:  # always pieces: the page itself can switch to words
            title = input_name(model)
            page = stack.enter_context(HTMLWriter(html, title=title, words_first=level == "word"))
        for pair in aligned_pairs(translator, src, tgt):
            sure, possible = set(), set()
            if truth is not None:
                sure, possible = truth.sure[pair.line - 1], truth.possible[pair.line - 1]
                found_links.append(set(hard_links(to_words(pair))))
            shown = to_words(pair) if level == "word" else pair
            for writer in plain:
                writer.write(shown)
            if page is not None:
                page.write(pair, sure, possible)
    if truth is not None:
        result = str(score_links(found_links, truth.sure, truth.possible))
        if "-" in (jsonl, pharaoh, html):
            say(result)
        else:
            with open_output(None) as out:
                out.write(result + "\n")


def read_truth(gold: str, base: int | None, src: str, tgt: str | None) -> "Gold":
    """The gold links, each between words that are there.

    Raises:
        ConfigError: if it is not said what the links are about.
        DataError: if they are not about these lines.
    """
    from nmt.alignment.links import read_gold
    from nmt.data.corpus import read_pairs
    from nmt.text.tokenizer import clean

    if tgt is None or base not in (0, 1):
        raise ConfigError(
            "attn-dump: --gold needs --tgt, whose words its links join, and --gold-base 0 or 1, "
            "the number of the first word in the gold file"
        )
    if "-" in (src, tgt):
        raise ConfigError(
            "attn-dump: with --gold, --src and --tgt are read twice; name files instead of -"
        )
    lengths = [
        (len(clean(pair.src).split()), len(clean(pair.tgt).split()))
        for pair in read_pairs(src, tgt)
    ]
    return read_gold(gold, 1 if base else 0, lengths)


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
        lines = decode_lines(stream, input_name(src), invalid)
        translations = translator.stream(lines, window=WINDOW)
        for line, translation in enumerate(translations, 1):
            for rank, (hypothesis, attended) in enumerate(
                zip(translation.hypotheses, translator.attend(translation), strict=True), 1
            ):
                yield aligned(src, line, rank, attended, hypothesis.score)
    invalid.report(input_name(src))


def aligned(name: str, line: int, rank: int, forced: "Forced", score: float) -> "AlignedPair":
    """A pair as the alignment formats want it; one without attention is empty."""
    from nmt.alignment.pair import AlignedPair
    from nmt.translator import FORCED_LIMIT

    if not forced.weights.size:
        if forced.src.tokens and forced.tgt.tokens:
            warn(
                f"{input_name(name)}:{line}: the pair has more than {FORCED_LIMIT} tokens on a "
                "side, too many for a matrix; it is left empty"
            )
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

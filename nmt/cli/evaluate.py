"""`nmt eval`: how good translations are."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Annotated

import typer

from nmt.cli.messages import InvalidLines, warn
from nmt.cli.options import (
    BatchTokens,
    BeamSize,
    Device,
    LengthPenalty,
    Precision,
    input_name,
    refuse_ignored,
    refuse_impossible_beam,
    refuse_shared_stream,
)
from nmt.cli.translate import WINDOW, NumWorkers, UseShortlist


def evaluate(
    ref: Annotated[
        list[str], typer.Option("--ref", "-r", help="Reference translations; repeatable.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Translate --src with this model.")
    ] = None,
    src: Annotated[
        str | None,
        typer.Option("--src", "-s", help="Source text; with --hyp it sorts BLEU by length."),
    ] = None,
    hyp: Annotated[
        str | None, typer.Option("--hyp", help="Score these translations instead.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Keep the model's translations here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Resample the sentences: how sure are the scores?"),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Translations of another system: do its scores differ from ours by more than "
            "chance? Repeatable.",
        ),
    ] = None,
    tokenize: Annotated[str, typer.Option(help="sacreBLEU's tokenizer for BLEU.")] = "13a",
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Ignore case.")] = False,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    shortlist: UseShortlist = False,
    workers: NumWorkers = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Measure BLEU, chrF and TER, of a model or of a file of translations.

    Give --model with --src and --ref, or --hyp with --ref. Each score comes with the sacreBLEU
    signature that reproduces it. --compare tests differences by paired bootstrap.
    """
    import hashlib
    import json

    from nmt.errors import ConfigError
    from nmt.evaluation.metrics import TOKENIZE_CHOICES
    from nmt.evaluation.report import evaluate as evaluate_translations
    from nmt.text.lines import decode_lines, open_input, open_output

    digests: dict[str, str] = {}

    def read(path: str) -> list[str]:
        invalid, digest = InvalidLines(), hashlib.sha256()
        with open_input(path) as stream:
            chunks = observed(stream, digest.update)
            lines = list(decode_lines(chunks, input_name(path), invalid))
        invalid.report(input_name(path))
        digests[path] = digest.hexdigest()
        return lines

    if (model is None) == (hyp is None):
        raise ConfigError("eval: give either --model with --src, or --hyp")
    if model is not None and src is None:
        raise ConfigError("eval: --model needs --src, the text to translate")
    if hyp is not None:
        refuse_ignored(
            "--hyp",
            output=output,
            beam_size=beam_size,
            length_penalty=length_penalty,
            batch_tokens=batch_tokens,
            shortlist=shortlist or None,
            workers=workers,
        )
    refuse_impossible_beam(beam_size)
    for path in ref:
        refuse_shared_stream("standard input", src=src, hyp=hyp, ref=path)
        for other in compare or ():
            refuse_shared_stream("standard input", src=src, hyp=hyp, ref=path, compare=other)
    if tokenize not in TOKENIZE_CHOICES:
        raise ConfigError(
            f"--tokenize: must be one of {', '.join(TOKENIZE_CHOICES)}, but is {tokenize}"
        )
    unknown: dict[str, float] = {}
    references = {path: read(path) for path in ref}
    for path, lines in references.items():
        if blank := [number for number, line in enumerate(lines, 1) if not line.strip()]:
            warn(
                f"{input_name(path)}: blank references: {len(blank)} (the first is line "
                f"{blank[0]}); against a blank reference nothing scores"
            )
    sources = read(src) if src is not None else None
    if model is None:
        assert hyp is not None
        hypotheses = read(hyp)
        translated = hyp
    else:
        assert sources is not None
        assert src is not None
        for path, lines in references.items():
            if len(lines) != len(sources):
                raise unequal(src, sources, path, lines)
        from nmt.build.saved import load
        from nmt.build.shortlist import shortlist_path
        from nmt.cli.workers import share_cores, translate_lines

        num_workers = share_cores(workers)
        translator = load(
            model,
            device=device,
            precision=precision,
            beam_size=beam_size,
            length_penalty=length_penalty,
            batch_tokens=batch_tokens,
            shortlist=shortlist_path(model) if shortlist else None,
        )
        with closing(
            translate_lines(translator, sources, window=WINDOW, workers=num_workers)
        ) as translations:
            hypotheses = [translation.text for translation in translations]
        if output is not None:
            with open_output(output) as out:
                out.writelines(f"{hypothesis}\n" for hypothesis in hypotheses)
        translated = src
        texts = [(src, translator.src_tokenizer, sources)]
        texts += [(path, translator.tgt_tokenizer, lines) for path, lines in references.items()]
        for path, tokenizer, lines in texts:
            found = tokenizer.count_unknown(lines)
            unknown[input_name(path)] = found.share
            if found.num_unknown:
                warn(found.advice(input_name(path)))
    for path, lines in references.items():
        if len(lines) != len(hypotheses):
            raise unequal(translated, hypotheses, path, lines)
    if sources is not None and len(sources) != len(hypotheses):
        raise unequal(translated, hypotheses, src or "", sources)
    systems = {path: read(path) for path in compare or ()}
    for path, lines in systems.items():
        if len(lines) != len(hypotheses):
            raise unequal(translated, hypotheses, path, lines)
    report = evaluate_translations(
        hypotheses,
        list(references.values()),
        sources=sources,
        tokenize=tokenize,
        lowercase=lowercase,
        unknown_tokens=unknown,
    )
    significance = None
    if confidence or compare:
        from nmt.evaluation.significance import resample

        ours = (model or hyp or "", hypotheses)
        significance = resample(
            [(input_name(path), lines) for path, lines in (ours, *systems.items())],
            list(references.values()),
            tokenize=tokenize,
            lowercase=lowercase,
        )
    with open_output(None) as out:
        if as_json:
            written = "".join(f"{hypothesis}\n" for hypothesis in hypotheses).encode()
            values = report.to_json()
            values["sha256"] = {
                "hypotheses": digests[hyp] if hyp else hashlib.sha256(written).hexdigest(),
                "references": [digests[path] for path in references],
                "source": digests.get(src or ""),
                "compared": [digests[path] for path in systems],
            }
            if significance is not None:
                values["significance"] = significance.to_json()
            out.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        else:
            out.write(report.to_text() + "\n")
            if significance is not None:
                out.write(f"\n{significance.to_text()}\n")


def observed(stream: Iterable[bytes], see: Callable[[bytes], None]) -> Iterator[bytes]:
    """The chunks of a stream, each shown to somebody else too."""
    for chunk in stream:
        see(chunk)
        yield chunk


def unequal(name: str, lines: list[str], other: str, other_lines: list[str]) -> Exception:
    """The error that two files do not have the same number of lines."""
    from nmt.errors import DataError

    return DataError(
        f"{input_name(name)} has {len(lines)} lines but {input_name(other)} has "
        f"{len(other_lines)}; "
        "line N of one must belong to line N of the other"
    )

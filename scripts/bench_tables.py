"""What the benchmarks found, as Markdown tables and as a picture."""

import math
from collections.abc import Iterable, Sequence

from bench_commands import CommandRow, Tokenization
from bench_decoding import DecodeRow
from bench_growth import PARAMETERS, Point
from bench_training import STAGES, TrainRow

from nmt.alignment.svg import label, picture

PANEL_WIDTH, PANEL_HEIGHT = 230, 170
LEFT, TOP, GAP_X, GAP_Y = 70, 70, 70, 80
COLUMNS = 3
TRAINING, DECODING = "#1d4ed8", "#ea580c"
ONE_TWO_FIVE = [m * 10.0**e for e in range(-8, 4) for m in (1, 2, 5)]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))


def share(value: float | None) -> str:
    """In per cent."""
    return "" if value is None else f"{value:.1%}"


def machine_table(peaks: dict[str, float], steps: dict[str, dict[str, float]]) -> str:
    """The peak in each format, and that of one decoder step of each size."""
    header = ["GFLOP/s", "large product", *(f"step of `{size}`" for size in steps)]
    rows = [
        [precision, f"{peak / 1e9:,.0f}", *(f"{s[precision] / 1e9:,.0f}" for s in steps.values())]
        for precision, peak in peaks.items()
    ]
    return markdown(header, rows)


def train_table(rows: Sequence[TrainRow]) -> str:
    """The speed of training."""
    header = ["training", "precision", "batch", "tokens/s", "limit", "share of limit"]
    header += ["padding", "of sources", *STAGES]
    if any(row.peak_bytes is not None for row in rows):
        header.append("peak, MB")
    body = []
    for row in rows:
        cells = [f"`{row.size}` {row.order}", row.precision, f"{row.batch:,}"]
        cells += [f"{row.tokens_per_second:,.0f}", f"{row.limit_tokens_per_second:,.0f}"]
        cells += [share(row.limit_share), share(row.padding), share(row.src_padding)]
        cells += [share(row.stages[stage]) for stage in STAGES]
        if row.peak_bytes is not None:
            cells.append(f"{row.peak_bytes / 1e6:,.0f}")
        body.append(cells)
    return markdown(header, body)


def decode_table(rows: Sequence[DecodeRow]) -> str:
    """The speed of translating."""
    header = ["decoding", "precision", "beam", "batch", "workers", "tokens/s", "words/s", "limit"]
    header.append("share of limit")
    body = [
        [
            f"`{row.size}` {row.order}",
            row.precision,
            str(row.beam),
            str(row.batch),
            str(row.processes or ""),
            f"{row.tokens_per_second:,.0f}",
            f"{row.words_per_second:,.0f}",
            f"{row.limit_tokens_per_second:,.0f}",
            share(row.limit_share),
        ]
        for row in rows
    ]
    return markdown(header, body)


def command_table(rows: Sequence[CommandRow]) -> str:
    """The time that commands take from their start to their end."""
    body = [[f"`nmt {r.command}`", f"{r.seconds:.2f}", f"{r.peak_bytes / 1e6:,.0f}"] for r in rows]
    return markdown(["command", "seconds", "peak, MB"], body)


def tokenization_table(found: Tokenization) -> str:
    """The speed of the tokenizer."""
    row = [
        f"{found.vocab_size:,} pieces, {found.lines:,} lines",
        f"{found.lines_per_second:,.0f}",
        f"{found.tokens_per_second:,.0f}",
        f"{found.training_seconds:.1f}",
    ]
    return markdown(["tokenisation", "lines/s", "tokens/s", "learning it, s"], [row])


def growth_tables(points: Sequence[Point]) -> str:
    """One table for each parameter: µs per target token."""
    tables = []
    for parameter, name in PARAMETERS.items():
        chosen = [point for point in points if point.parameter == parameter]
        header, rows = [name], [[f"{point.value:,}"] for point in chosen]
        columns = {
            "training, µs/token": [micro(point.training) for point in chosen],
            "of it attention": [share(point.training_attention) for point in chosen],
            "beam search, µs/token": [micro(point.decoding) for point in chosen],
            "of it attention ": [share(point.decoding_attention) for point in chosen],
        }
        for title, cells in columns.items():
            if any(cells):
                header.append(title.strip())
                rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
        tables.append(markdown(header, rows))
    return "\n\n".join(tables) + "\n"


def micro(seconds: float | None) -> str:
    """In microseconds."""
    return "" if seconds is None else f"{seconds * 1e6:,.0f}"


def growth_svg(points: Sequence[Point]) -> str:
    """One panel for each parameter, all with the same logarithmic cost axis."""
    costs = [
        cost
        for p in points
        for cost in (
            p.training,
            p.decoding,
            part(p.training, p.training_attention),
            part(p.decoding, p.decoding_attention),
        )
        if cost is not None
    ]
    low, high = min(costs) / 1.5, max(costs) * 1.5
    width = LEFT + COLUMNS * (PANEL_WIDTH + GAP_X) - GAP_X / 2
    height = TOP + math.ceil(len(PARAMETERS) / COLUMNS) * (PANEL_HEIGHT + GAP_Y)
    parts = [
        label("Cost of a target token, µs", LEFT, 26, 'font-weight="bold"'),
        label("training", LEFT + 260, 26, f'fill="{TRAINING}"'),
        label("beam search", LEFT + 340, 26, f'fill="{DECODING}"'),
        label("dashed: what attention takes of it", LEFT + 445, 26),
    ]
    for i, (parameter, name) in enumerate(PARAMETERS.items()):
        x = LEFT + i % COLUMNS * (PANEL_WIDTH + GAP_X)
        y = TOP + i // COLUMNS * (PANEL_HEIGHT + GAP_Y)
        parts.append(f'<g transform="translate({x} {y})" font-size="12">')
        chosen = [point for point in points if point.parameter == parameter]
        parts += panel(name, chosen, low, high)
        parts.append("</g>")
    return picture(width, height, parts)


def panel(name: str, points: Sequence[Point], low: float, high: float) -> list[str]:
    """The costs at each value of one parameter."""
    first, last = points[0].value, points[-1].value

    def x(value: int) -> float:
        return 12 + (PANEL_WIDTH - 24) * position(value, first, last)

    def y(cost: float) -> float:
        return PANEL_HEIGHT * (1 - position(cost, low, high))

    size = f'width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}"'
    parts = [f'<rect {size} fill="#f1f4f9"/>', label(name, PANEL_WIDTH / 2, -10, MIDDLE)]
    for tick in ONE_TWO_FIVE:
        if low <= tick <= high:
            parts.append(f'<path d="M0 {y(tick):.1f}H{PANEL_WIDTH}" stroke="#ffffff"/>')
            parts.append(label(f"{tick * 1e6:,g}", -6, round(y(tick) + 4, 1), END))
    for point in points:
        at = round(x(point.value), 1)
        parts.append(label(f"{point.value:,}", at, PANEL_HEIGHT + 18, MIDDLE))
    lines: dict[tuple[str, str], list[tuple[int, float | None]]] = {
        (TRAINING, ""): [(p.value, p.training) for p in points],
        (DECODING, ""): [(p.value, p.decoding) for p in points],
        (TRAINING, DASHED): [(p.value, part(p.training, p.training_attention)) for p in points],
        (DECODING, DASHED): [(p.value, part(p.decoding, p.decoding_attention)) for p in points],
    }
    for (color, style), line in lines.items():
        at_points = [(x(value), y(cost)) for value, cost in line if cost is not None]
        if at_points:
            path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in at_points)
            parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"{style}/>')
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{color}"/>' for a, b in at_points
            ]
    return parts


def position(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a logarithmic axis: 0 to 1."""
    return 0.5 if low == high else math.log(value / low) / math.log(high / low)


def part(cost: float | None, of_it: float | None) -> float | None:
    """A share of a cost; nothing where it is not known, or lost in noise."""
    return None if cost is None or of_it is None or of_it <= 0 else cost * of_it


MIDDLE, END = 'text-anchor="middle"', 'text-anchor="end"'
DASHED = ' stroke-dasharray="4 4"'

"""Measure how fast this machine trains and translates, and how fast it could.

    python scripts/bench.py [--device cpu|cuda] [--sizes small,base] [--json FILE]
    python scripts/bench.py --growth FILE.md --plot FILE.svg

The peak of the machine is measured first: large matrix products in each number format, and copies.
Every speed is then given in tokens per second and as a share of its limit: the speed at which the
operations of the model, as its paper writes it and without padding, would run at that peak. The
text is synthetic, with the lengths of Multi30k. Tables go to stdout, progress to stderr; nothing
else should run meanwhile. With --growth only the growth of the cost of a token is measured.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bench_commands import command_rows, tokenization
from bench_decoding import decode_rows
from bench_growth import growth
from bench_machine import copy_bandwidth, gemm_flops, step_gemm_flops
from bench_setup import FULL, ON_CUDA, QUICK, SHAPES, Bench, device_name
from bench_tables import (
    command_table,
    decode_table,
    growth_svg,
    growth_tables,
    machine_table,
    tokenization_table,
    train_table,
)
from bench_training import train_rows

import nmt
from nmt.build.training import build_device
from nmt.errors import ConfigError


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure speed, and its share of the limit.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--sizes", help="of small, base, gnmt; by default small,base, and gnmt too on CUDA"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's choice")
    parser.add_argument("--json", type=Path, help="file for all that was found")
    parser.add_argument("--growth", type=Path, help="file for tables of the growth of the cost")
    parser.add_argument("--plot", type=Path, help="file for the same as an SVG picture")
    parser.add_argument("--repeats", type=int, help="of which the median is taken; by default 5")
    parser.add_argument("--quick", action="store_true", help="a smoke test with tiny models")
    arguments = parser.parse_args()
    if arguments.plot and not arguments.growth:
        parser.error("--plot needs --growth")
    if arguments.sizes is None:
        on_cuda = arguments.device.startswith("cuda")
        arguments.sizes = "tiny" if arguments.quick else "small,base" + ",gnmt" * on_cuda
    arguments.sizes = arguments.sizes.split(",")
    if unknown := set(arguments.sizes) - SHAPES.keys():
        parser.error(f"--sizes: must be of {', '.join(SHAPES)}, but has {', '.join(unknown)}")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads: must be at least 1, but is {arguments.threads}")
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error(f"--repeats: must be at least 1, but is {arguments.repeats}")
    return arguments


def machine(device: torch.device) -> dict[str, Any]:
    """Where this was measured."""
    return {
        "device": str(device),
        "name": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nmt": nmt.__version__,
    }


def measure_growth(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """The growth of the cost of a token, written to its files."""
    size = arguments.sizes[0]
    _, tokenizer = tokenization(bench, SHAPES["tiny"].vocab_size)
    points = growth(bench, size, tokenizer, quick=arguments.quick)
    tables = growth_tables(points)
    print(tables)
    arguments.growth.write_text(tables, encoding="utf-8")
    if arguments.plot:
        arguments.plot.write_text(growth_svg(points), encoding="utf-8")
    return {"growth": [asdict(point) for point in points]}


def measure_speed(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """Machine, training, decoding, tokenisation, commands; each table as soon as it is there."""
    peaks = gemm_flops(bench)
    steps = {size: step_gemm_flops(bench, SHAPES[size]) for size in arguments.sizes}
    bandwidth = copy_bandwidth(bench)
    print(machine_table(peaks, steps))
    print(f"\ncopy: {bandwidth / 1e9:,.1f} GB/s, read and written bytes together\n", flush=True)
    text, tokenizer = tokenization(bench, SHAPES[arguments.sizes[0]].vocab_size)
    print(tokenization_table(text) + "\n", flush=True)
    train = [row for size in arguments.sizes for row in train_rows(bench, size, peaks)]
    print(train_table(train) + "\n", flush=True)
    decode = [row for size in arguments.sizes for row in decode_rows(bench, size, peaks, tokenizer)]
    print(decode_table(decode) + "\n", flush=True)
    commands = command_rows(bench, SHAPES[arguments.sizes[0]], tokenizer)
    print(command_table(commands), flush=True)
    return {
        "gemm_flops": peaks,
        "step_gemm_flops": steps,
        "copy_bytes_per_second": bandwidth,
        "train": [asdict(row) for row in train],
        "decode": [asdict(row) for row in decode],
        "tokenization": asdict(text),
        "commands": [asdict(row) for row in commands],
    }


def main() -> None:
    """Measure and report."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the commands
    try:
        device = build_device(arguments.device)
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    effort = QUICK if arguments.quick else ON_CUDA if device.type == "cuda" else FULL
    if arguments.repeats:
        effort = replace(effort, repeats=arguments.repeats)
    where = machine(device)
    print(
        f"{where['name']}, {where['threads']} threads, torch {where['torch']}, "
        f"load {where['load']:.1f} when this began\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="nmt-bench-") as folder:
        bench = Bench(device, effort, Path(folder))
        measure = measure_growth if arguments.growth else measure_speed
        found = {"machine": where, **measure(bench, arguments)}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

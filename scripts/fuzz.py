"""Fuzz the readers of text, config and model for a fixed time each, and print what was tried.

The inputs come from tests/fuzz, which `make test` runs with a few examples; here each target runs
in a process of its own, with ever new inputs, until its time is over. A crash is a failure too.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parent.parent / "tests" / "fuzz"
ROUND = 50
"""Inputs between two looks at the clock."""

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Result:
    """What became of the inputs of one target."""

    target: str
    tried: int
    accepted: int
    errors: dict[str, int]
    """How often each distinct error was given, without numbers and names."""
    failures: list[str]
    mebibytes: int
    """Most memory that the process had."""


def import_file(path: Path) -> ModuleType:
    """A module of tests/fuzz."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def targets_of(module: ModuleType) -> list[str]:
    """The tests of a module that take inputs."""
    return [name for name, value in vars(module).items() if hasattr(value, "hypothesis")]


def run_target(path: Path, name: str, seconds: float) -> Result:
    """Give one target new inputs until its time is over, or it fails."""
    module = import_file(path)
    target = getattr(module, name)
    failures: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and not failures:
        try:
            target()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append("".join(traceback.format_exception(error)))
            break
    outcomes = dict(module.OUTCOMES.most_common())
    accepted = {"loads", "a config", "reads", "one line", "valid UTF-8", "invalid UTF-8"}
    accepted |= set(getattr(module, "KINDS", []))
    errors = {text: count for text, count in outcomes.items() if text not in accepted}
    return Result(
        name.removeprefix("test_"),
        sum(outcomes.values()),
        sum(outcomes.values()) - sum(errors.values()),
        errors,
        failures,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // MEBIBYTE,
    )


def run_apart(path: Path, name: str, seconds: float) -> Result:
    """The same in a process of its own, whose crash is a failure."""
    folder = Path(tempfile.mkdtemp(prefix=f"nmt-{name}-"))
    environment = {
        **os.environ,
        "NMT_FUZZ_EXAMPLES": str(ROUND),
        "NMT_FUZZ_FOLDER": str(folder / "input"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--target", f"{path.name}::{name}"]
    try:
        ended = subprocess.run(
            [*command, "--seconds", str(seconds)],
            stdout=subprocess.PIPE,
            env=environment,
            cwd=folder,
            timeout=10 * seconds + 300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(name, 0, 0, {}, [f"does not end; its input is {folder}/input"], 0)
    if ended.returncode:
        code = ended.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Result(name, 0, 0, {}, [f"{how}; its input is {folder}/input"], 0)
    shutil.rmtree(folder, ignore_errors=True)
    return Result(**json.loads(ended.stdout.split(b"\n")[-2]))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60, help="time of each target")
    parser.add_argument("--only", default="", help="targets whose name has this in it")
    parser.add_argument("--errors", action="store_true", help="list the distinct errors, too")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target:
        file, _, name = options.target.partition("::")
        print(json.dumps(asdict(run_target(TESTS / file, name, options.seconds))))
        return
    print("| target | inputs | accepted | refused | distinct errors | failures | memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    results: list[Result] = []
    for path in sorted(TESTS.glob("test_fuzz_*.py")):
        for name in targets_of(import_file(path)):
            if options.only not in name:
                continue
            result = run_apart(path, name, options.seconds)
            results.append(result)
            print(
                f"| {path.stem.removeprefix('test_fuzz_')}: "
                f"{result.target.replace('_', ' ')} | {result.tried:,} | {result.accepted:,} | "
                f"{sum(result.errors.values()):,} | {len(result.errors)} | "
                f"{len(result.failures)} | {result.mebibytes} |",
                flush=True,
            )
    print(f"\n{sum(result.tried for result in results):,} inputs")
    for result in results:
        if options.errors:
            for text, count in result.errors.items():
                print(f"{result.target}: {count:,} times: {text}")
        for failure in result.failures:
            print(f"\n{result.target} failed:\n{failure}", file=sys.stderr)
    sys.exit(any(result.failures for result in results))


if __name__ == "__main__":
    main()

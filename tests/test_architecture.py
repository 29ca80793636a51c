"""The architecture, as a test: who may import whom, and what nobody may do."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import nmt

MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "text": {"errors"},
    "data": {"errors", "text"},
    "model": set(),
    "search": set(),
    "memory": set(),
    "training": {"errors", "text", "data", "model", "memory"},
    "decoding": {"errors", "text", "data", "model", "search", "memory"},
    "translator": {"errors", "text", "data", "model", "search", "memory", "decoding"},
    "evaluation": {"errors"},
    "alignment": {"errors", "text"},
    "validation": {"errors", "data", "memory", "translator", "evaluation"},
    "build": {
        "errors",
        "config",
        "text",
        "data",
        "model",
        "memory",
        "training",
        "translator",
    },
    "cli": {
        "errors",
        "config",
        "text",
        "data",
        "model",
        "memory",
        "training",
        "translator",
        "evaluation",
        "alignment",
        "validation",
        "build",
    },
    "__init__": {"build"},  # nmt.load, imported when it is used
    "__main__": {"cli"},
}
"""Only build and cli see the config; model and search see nothing of ours."""

MAY_BE_IMPORTED_BY = {
    "torch": {
        "data",
        "model",
        "search",
        "memory",
        "decoding",
        "training",
        "translator",
        "validation",
        "build",
        "cli",
    },
    "numpy": {"data", "model", "decoding", "translator", "alignment", "cli"},
    "numba": {"model"},
    "llvmlite": {"model"},
    "safetensors": {"training", "build"},
    "sentencepiece": {"text"},
    "sacrebleu": {"evaluation"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "yaml": {"config"},
    "typer": {"cli"},
    "tqdm": {"cli"},
}
"""Who uses which package; text, config, evaluation and alignment do without torch."""

WITHOUT_TORCH = ["errors", "config", "text", "evaluation", "alignment"]
WITHOUT_HELP = {
    "torch",
    "numba",
    "datasets",
    "numpy",
    "sacrebleu",
    "sentencepiece",
    "pydantic",
    "yaml",
}
MAX_LINES = 400
MAX_HELP_SECONDS = 0.3

BANNED = {
    "splitlines": "splits at U+2028 and others; lines are read by nmt.text.lines",
    "readlines": "lines are read by nmt.text.lines",
    "codecs": "its readers split lines like splitlines; use nmt.text.lines",
    "pickle": "loading it runs code",
    "marshal": "loading it runs code",
    "shelve": "loading it runs code",
    "eval": "runs code",
    "exec": "runs code",
    "__import__": "hides an import from this test",
    "importlib.import_module": "hides an import from this test",
    "importlib.util": "hides an import from this test",
    "importlib.machinery": "hides an import from this test",
    "runpy": "runs code",
    "os.system": "runs a shell; use subprocess.run with a list",
    "os.popen": "runs a shell; use subprocess.run with a list",
    "dill": "loading it runs code",
    "cloudpickle": "loading it runs code",
    "joblib": "loading it runs code",
    "torch.hub": "runs code from elsewhere",
    "torch.package": "loading it runs code",
    "np.load": "allocates what a file claims; see nmt.data.shortlist",
    "numpy.load": "allocates what a file claims; see nmt.data.shortlist",
    "safetensors.torch.load_file": "allocates what a file claims; see nmt.training.untrusted",
    "click": "typer has its own",
    "torch.ao": "is being retired",
    "torch.jit": "is being retired",
    "yaml.load": "YAML is read by nmt.config.strict_yaml",
    "yaml.load_all": "YAML is read by nmt.config.strict_yaml",
    "yaml.safe_load": "YAML is read by nmt.config.strict_yaml",
    "yaml.safe_load_all": "YAML is read by nmt.config.strict_yaml",
    "yaml.full_load": "YAML is read by nmt.config.strict_yaml",
    "yaml.unsafe_load": "YAML is read by nmt.config.strict_yaml",
}
OF_ANY_OBJECT = {"splitlines", "readlines"}

PACKAGE = Path(nmt.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((PACKAGE.parent / "scripts").glob("*.py"))


def name_of(path):
    return str(path.relative_to(PACKAGE.parent))


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """All that a module imports, wherever in its code, by full name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def dotted(node):
    """`a.b.c` as written, beginning with a dot where `a` is not a plain name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def used(tree):
    """All dotted names that a module imports or mentions."""
    mentioned = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return imported(tree) | mentioned | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def parts_used(tree):
    """The parts of nmt that a module imports or reaches through `nmt.`; its version is free."""
    return {name.split(".")[1] for name in used(tree) if name.startswith("nmt.")} - {"__version__"}


def offences(tree):
    """What a module does that nobody may do."""
    for name in used(tree):
        for banned in BANNED:
            if name == banned or name.startswith(f"{banned}."):
                yield banned
        if name.rpartition(".")[2] in OF_ANY_OBJECT:
            yield name.rpartition(".")[2]
    if "torch.load" in imported(tree):
        yield "torch.load without weights_only=True"
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(type=None) | ast.ExceptHandler(type=ast.Name("Exception")):
                yield "except Exception"
            case ast.ExceptHandler(type=ast.Tuple(elts)) if "Exception" in map(dotted, elts):
                yield "except Exception"
            case ast.ExceptHandler(type=ast.Name("BaseException"), body=[*_, last]):
                if not isinstance(last, ast.Raise):
                    yield "except BaseException without raise"
            case ast.Call(func=func, args=args, keywords=keywords):
                given = {k.arg: getattr(k.value, "value", None) for k in keywords}
                if dotted(func) == "torch.load" and given.get("weights_only") is not True:
                    yield "torch.load without weights_only=True"
                if "allow_pickle" in given and given["allow_pickle"] is not False:
                    yield "allow_pickle=True"
                if "shell" in given and given["shell"] is not False:
                    yield "shell=True"
                mode = getattr(args[1], "value", "?") if len(args) > 1 else given.get("mode", "r")
                if dotted(func) == "open" and "b" not in mode and "r" in mode:
                    yield "open for reading text"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_it_may(path):
    part, tree = part_of(path), parse(path)
    assert parts_used(tree) <= MAY_IMPORT[part] | {part}
    for name in imported(tree):
        package = name.partition(".")[0]
        assert package, f"{name}: import by full name"
        if package != "nmt" and package not in sys.stdlib_module_names:
            assert part in MAY_BE_IMPORTED_BY.get(package, ()), f"{part} must not import {package}"


def test_no_permission_is_unused():
    unused = {(part, other) for part, others in MAY_IMPORT.items() for other in others}
    unused |= {(part, name) for name, parts in MAY_BE_IMPORTED_BY.items() for part in parts}
    for path in MODULES:
        tree = parse(path)
        names = parts_used(tree) | {name.partition(".")[0] for name in imported(tree)}
        unused -= {(part_of(path), name) for name in names}
    assert not unused


def test_no_import_goes_round_in_a_circle():
    done = set()
    while len(done) < len(MAY_IMPORT):
        ready = {part for part, others in MAY_IMPORT.items() if others <= done} - done
        assert ready, f"a circle among {set(MAY_IMPORT) - done}"
        done |= ready


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("import nmt", set()),
        ("from nmt import __version__", set()),
        ("import nmt\nnmt.__version__", set()),
        ("import nmt\nnmt.build.saved.load", {"build"}),
        ("from nmt import build", {"build"}),
        ("from nmt.build.saved import load", {"build"}),
        ("def f():\n    import nmt.build.saved", {"build"}),
    ],
)
def test_an_import_is_seen_wherever_it_stands(code, parts):
    assert parts_used(ast.parse(code)) == parts


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_does_nothing_that_is_banned(path):
    found = [f"{name}: {BANNED.get(name, 'never')}" for name in offences(parse(path))]
    assert not found


@pytest.mark.parametrize(
    ("code", "offence"),
    [
        ("text.splitlines()", "splitlines"),
        ("read(path).splitlines(True)", "splitlines"),
        ("str.splitlines(text)", "splitlines"),
        ("stream.readlines()", "readlines"),
        ("import codecs", "codecs"),
        ("from codecs import open", "codecs"),
        ("import pickle", "pickle"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("__import__('torch')", "__import__"),
        ("from importlib import import_module", "importlib.import_module"),
        ("import importlib\nimportlib.import_module(name)", "importlib.import_module"),
        ("importlib.util.spec_from_file_location(name)", "importlib.util"),
        ("import runpy", "runpy"),
        ("os.system(command)", "os.system"),
        ("from os import popen", "os.popen"),
        ("subprocess.run(command, shell=True)", "shell=True"),
        ("subprocess.Popen(command, shell=is_text)", "shell=True"),
        ("torch.hub.load(name)", "torch.hub"),
        ("np.load(path)", "np.load"),
        ("from safetensors.torch import load_file", "safetensors.torch.load_file"),
        ("from torch import load\nload(path)", "torch.load without weights_only=True"),
        ("np.lib.format.read_array(stream, allow_pickle=value)", "allow_pickle=True"),
        ("import click", "click"),
        ("from torch.ao import quantization", "torch.ao"),
        ("torch.jit.script(model)", "torch.jit"),
        ("yaml.safe_load(text)", "yaml.safe_load"),
        ("from yaml import load", "yaml.load"),
        ("try:\n    f()\nexcept Exception:\n    pass", "except Exception"),
        ("try:\n    f()\nexcept (OSError, Exception) as error:\n    raise", "except Exception"),
        ("try:\n    f()\nexcept:\n    raise", "except Exception"),
        ("try:\n    f()\nexcept BaseException:\n    pass", "except BaseException without raise"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("open(path)", "open for reading text"),
        ("open(path, 'r', encoding='utf-8')", "open for reading text"),
        ("open(path, mode='r')", "open for reading text"),
    ],
)
def test_what_is_banned_is_found(code, offence):
    assert offence in offences(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "yaml.dump(values)",
        "open(path, 'rb')",
        "open(path, 'w', encoding='utf-8')",
        "os.open(path, os.O_RDONLY)",
        "try:\n    f()\nexcept BaseException:\n    undo()\n    raise",
        "array.evaluate()",
        "subprocess.run([program], shell=False)",
        "operating.os.systems",
    ],
)
def test_what_is_allowed_is_not_found(code):
    assert not list(offences(ast.parse(code)))


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_a_module_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= MAX_LINES


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )


def test_text_evaluation_and_alignment_work_without_torch():
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in MODULES
        if part_of(path) in WITHOUT_TORCH
    ]
    assert len(modules) > len(WITHOUT_TORCH)
    loaded = run_python(f"import sys, {', '.join(modules)}\nprint(*sys.modules)").stdout.split()
    assert set(modules) <= set(loaded)
    assert "torch" not in loaded


def test_help_loads_nothing_heavy():
    result = run_python(
        "import sys\n"
        "from nmt.cli import main\n"
        "sys.argv = ['nmt', '--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*sys.modules, file=sys.stderr)\n"
    )
    assert "attn-dump" in result.stdout
    loaded = set(result.stderr.split())
    assert "nmt.cli.main" in loaded
    assert not loaded & WITHOUT_HELP


def test_help_answers_in_a_blink():
    """CPU time, the best of three: what a busy machine does to the clock is not our doing."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "nmt", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) <= MAX_HELP_SECONDS

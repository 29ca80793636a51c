"""A model directory with anything in it loads, or is refused with one line; see `make fuzz`."""

import atexit
import hashlib
import io
import json
import os
import re
import resource
import shutil
import struct
import tempfile
import zipfile
from collections import Counter
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmt.build.data import build_token_store, build_tokenizers
from nmt.build.model import build_model
from nmt.build.saved import load
from nmt.build.shortlist import build_shortlist
from nmt.config import load_config, parse_config, to_yaml
from nmt.errors import ConfigError, ModelError
from nmt.training.checkpoint import SEAL, write_checkpoint

OUTCOMES = Counter()
"""What became of the inputs that were tried."""

EXAMPLES = os.environ.get("NMT_FUZZ_EXAMPLES")  # set by scripts/fuzz.py
fuzz = settings(
    max_examples=int(EXAMPLES or 25),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

MEMORY = 1 << 30
"""Bytes that loading and translating may take beyond what the process has."""

CONFIG = """\
run_dir: run
src_lang: de
tgt_lang: en
data:
  train: {src: train.de, tgt: train.en}
  valid: {src: train.de, tgt: train.en}
tokenizer: {vocab_size: 34}
model:
  embed_dim: 6
  encoder: {hidden_dim: 5}
  decoder: {hidden_dim: 8}
  attention: {key_dim: 7}
"""
GERMAN = ["der hund sieht die katze", "die maus jagt die kuh", "der hund jagt den kater"]
ENGLISH = ["the dog sees the cat", "the mouse hunts the cow", "the dog hunts the tomcat"]

STEP = "checkpoints/step-00000001"
WEIGHTS, STATE, MANIFEST = (
    f"{STEP}/{name}" for name in ("model.safetensors", "training_state.pt", "manifest.json")
)
TOKENIZER, SHORTLIST = "tokenizer/shared.model", "shortlist.npz"


@cache
def pristine():
    """The files of a model that was saved and not trained, by their path in the run directory."""
    folder = Path(tempfile.mkdtemp(prefix="nmt-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with chdir(folder):
        Path("config.yaml").write_text(CONFIG, encoding="utf-8")
        for language, sentences in (("de", GERMAN), ("en", ENGLISH)):
            Path(f"train.{language}").write_text("".join(s + "\n" for s in sentences * 10), "utf-8")
        config, run = load_config("config.yaml"), Path("run")
        tokenizers = build_tokenizers(config, run / "tokenizer", lambda message: None)
        torch.manual_seed(1)
        model = build_model(config, len(tokenizers.src), len(tokenizers.tgt))
        write_checkpoint(
            run, 1, dict(model.named_parameters()), {}, {"tokenizers": tokenizers.hashes}
        )
        (run / "best").write_text(f"{STEP}\n")
        (run / "config.yaml").write_text(CONFIG, encoding="utf-8")
        build_token_store(config, "train", tokenizers, Path("store"), lambda message: None)
        shortlist = build_shortlist(
            tokenizers, Path("store"), per_token=2, frequent=1, max_pairs=10
        )
        shortlist.save(run / SHORTLIST)
        return {
            str(path.relative_to(run)): path.read_bytes()
            for path in sorted(run.rglob("*"))
            if path.is_file()
        }


@cache
def scratch():
    """The folder in which each input is laid out; after a crash, the input is still there."""
    folder = Path(os.environ.get("NMT_FUZZ_FOLDER") or tempfile.mkdtemp(prefix="nmt-fuzz-"))
    if "NMT_FUZZ_FOLDER" not in os.environ:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def sealed(files):
    """The files with a manifest that fits them, as somebody would make it who means harm."""
    manifest = json.loads(pristine()[MANIFEST])
    manifest.pop(SEAL, None)
    for name in (WEIGHTS, STATE):
        content = files[name]
        manifest["files"][Path(name).name] = {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    digest = hashlib.sha256(files[TOKENIZER]).hexdigest()
    manifest["tokenizers"] = {"src": digest, "tgt": digest}
    return files | {MANIFEST: json.dumps(manifest).encode()}


@contextmanager
def little_memory():
    """Let this process take no more than MEMORY beyond what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def listing(folder):
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")
    }


def attempt(files, *, translate=True, shortlist=False):
    """Load what these files are, as a user would; gives the translator, or None."""
    folder = scratch()
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    before = listing(folder)
    translator = None
    try:
        with little_memory():
            translator = load(
                folder, device="cpu", shortlist=folder / SHORTLIST if shortlist else None
            )
            if translate:
                (found,) = translator.translate(["der hund sieht"])
                assert "\n" not in found.text
        OUTCOMES["loads"] += 1
    except (ModelError, ConfigError) as error:
        message = str(error)
        for problem in message.split("\n"):
            assert problem.isprintable(), problem
            assert len(problem) < 1000, problem
        OUTCOMES[re.sub(r"\d+", "N", message.replace(str(folder), "RUN").split("\n")[0])[:90]] += 1
    assert listing(folder) == before, "a file was written"
    return translator


@cache
def undamaged():
    """The model of the files as they were."""
    return attempt(pristine(), translate=False)


def mutate(content, data):
    """Some bytes changed, cut off, left out, doubled or put in."""
    content = bytearray(content)
    for _ in range(data.draw(st.sampled_from([1, 1, 2, 8]), "mutations")):
        index = data.draw(st.integers(0, max(len(content) - 1, 0)), "where")
        match data.draw(st.sampled_from(["set", "flip", "cut", "remove", "double", "insert"])):
            case "set":
                values = st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b'"', b"9"])
                value = data.draw(values | st.binary(min_size=1, max_size=9))
                content[index : index + len(value)] = value
            case "flip":
                content[index : index + 1] = bytes(
                    byte ^ (1 << data.draw(st.integers(0, 7)))
                    for byte in content[index : index + 1]
                )
            case "cut":
                del content[index:]
            case "remove":
                del content[index : index + data.draw(st.integers(1, 50))]
            case "double":
                content[index:index] = content[index : index + data.draw(st.integers(1, 50))]
            case "insert":
                content[index:index] = data.draw(st.binary(max_size=50))
    return bytes(content)


def test_the_model_itself_loads():
    assert attempt(pristine(), shortlist=True) is not None
    assert attempt(sealed(pristine()), shortlist=True) is not None


@fuzz
@given(st.data())
def test_damage_by_accident_is_found(data):
    """Whatever happens to the bytes of a file: the weights are those that were saved, or none."""
    files = dict(pristine())
    name = data.draw(st.sampled_from(sorted(files)), "file")
    files[name] = mutate(files[name], data)
    translator = attempt(files, translate=False)
    if translator is not None:
        good = undamaged()
        for a, b in zip(translator.model.parameters(), good.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert translator.src_tokenizer.sha256 == good.src_tokenizer.sha256


@fuzz
@given(st.data())
def test_weights_whose_hash_fits(data):
    files = dict(pristine())
    files[WEIGHTS] = mutate(files[WEIGHTS], data)
    attempt(sealed(files))


NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**62, 2**63, 2**64, 10**30, 0.5, 1e999, None, True])
JSON = st.recursive(
    NUMBERS | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["F32", "BOOL"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=9,
)


def change_json(value, data):
    """A JSON value in which one place, somewhere, is something else."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)), "key")
        match data.draw(st.sampled_from(["in", "in", "in", "del", "rename", "copy"])):
            case "in":
                return value | {key: change_json(value[key], data)}
            case "del":
                return {name: inner for name, inner in value.items() if name != key}
            case "rename":
                new = data.draw(st.text(max_size=20) | st.just("a" * 300))
                return {new if name == key else name: inner for name, inner in value.items()}
            case "copy":
                return value | {data.draw(st.text(max_size=20)): value[key]}
    if isinstance(value, list) and value and data.draw(st.integers(0, 3)):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], change_json(value[index], data), *value[index + 1 :]]
    if isinstance(value, int) and data.draw(st.booleans()):
        return value + data.draw(st.integers(-8, 8))
    return data.draw(JSON)


@fuzz
@given(st.data())
def test_a_header_of_weights_that_says_anything(data):
    files = dict(pristine())
    size = struct.unpack("<Q", files[WEIGHTS][:8])[0]
    header = json.loads(files[WEIGHTS][8 : 8 + size])
    for _ in range(data.draw(st.integers(1, 3))):
        header = change_json(header, data)
    text = json.dumps(header).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    length = data.draw(st.sampled_from([len(text)] * 4 + [0, 2**31, 2**63, 2**64 - 1]), "length")
    files[WEIGHTS] = struct.pack("<Q", length) + text + files[WEIGHTS][8 + size :]
    attempt(sealed(files))


@fuzz
@given(st.data())
def test_a_manifest_that_says_anything(data):
    files = dict(pristine())
    manifest = json.loads(files[MANIFEST])
    if data.draw(st.booleans(), "without its own checksum"):
        manifest.pop(SEAL, None)
    for _ in range(data.draw(st.integers(1, 3))):
        manifest = change_json(manifest, data)
    files[MANIFEST] = json.dumps(manifest).encode("utf-8", "replace")
    attempt(files)


VALUES = """
0 1 -1 2 7 100 101 1000000 1000001 2147483648 1e9 1e999 .nan true null "" [] {} [[[1]]] lstm none
dot luong all decoder word bpe ../../x /etc/passwd !!python/name:os.system &a *a 9e99999
"""


@fuzz
@given(st.data())
def test_a_config_with_other_values(data):
    files = dict(pristine())
    lines = to_yaml(parse_config(CONFIG, "config")).split("\n")
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 2), "line")
        key, colon, _ = lines[index].partition(":")
        lines[index] = f"{key}{colon} {data.draw(st.sampled_from(VALUES.split()))}"
    files["config.yaml"] = "\n".join(lines).encode()
    attempt(files, translate=False)


@fuzz
@given(st.data())
def test_a_tokenizer_whose_hash_fits(data):
    files = dict(pristine())
    content = files[TOKENIZER]
    table = content.index(b"nmt_nfkc")  # the pieces come before it, and are a small part
    if data.draw(st.booleans(), "pieces"):
        files[TOKENIZER] = mutate(content[:table], data) + content[table:]
    else:
        files[TOKENIZER] = content[:table] + mutate(content[table:], data)
    translator = attempt(sealed(files))
    if translator is not None:
        tokenizer = translator.src_tokenizer
        token_ids = list(range(len(tokenizer)))
        assert len(tokenizer.tokens(token_ids)) == len(token_ids)
        assert "\n" not in tokenizer.decode(token_ids)
        try:
            tokenizer.segment("der hund ＡＢＣ ﬁ ① é 한글 日本 ﷺ")
        except ModelError as error:
            OUTCOMES[str(error)] += 1


@fuzz
@given(st.data())
def test_a_shortlist_that_is_anything(data):
    files = dict(pristine())
    with zipfile.ZipFile(io.BytesIO(files[SHORTLIST])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if data.draw(st.booleans(), "entry"):
        name = data.draw(st.sampled_from(sorted(entries)))
        entries[name] = mutate(entries[name], data)
        stream = io.BytesIO()
        how = data.draw(st.sampled_from([zipfile.ZIP_STORED] * 5 + [zipfile.ZIP_DEFLATED]))
        with zipfile.ZipFile(stream, "w", how) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        files[SHORTLIST] = stream.getvalue()
    else:
        files[SHORTLIST] = mutate(files[SHORTLIST], data)
    attempt(files, shortlist=True)

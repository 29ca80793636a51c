"""A trained model to do harm to, and what sees whether the harm was done."""

import hashlib
import json
import os
import re
import resource
import shutil
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import nmt as package
from nmt.training.checkpoint import SEAL

STEP = "step-00000200"
WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"
MEBIBYTE = 1 << 20

SPYING: list[str] | None = None


def hook(event, arguments):
    """Notes what a reader must never do. A hook cannot be taken away, only told to be quiet."""
    if SPYING is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if flags & writing and path != os.devnull:
            SPYING.append(f"writes {path} ({mode})")
        if str(path).endswith(STATE):
            SPYING.append(f"reads {path}")
    elif event in ("pickle.find_class", "subprocess.Popen", "socket.connect") or re.match(
        r"os\.(system|exec|posix_spawn|fork|mkdir|remove|rename|rmdir|link|symlink|truncate|chmod)",
        event,
    ):
        SPYING.append(f"{event} {arguments}")


sys.addaudithook(hook)


@contextmanager
def watched():
    """Collects what is done meanwhile and must not be."""
    global SPYING
    SPYING = found = []
    try:
        yield found
    finally:
        SPYING = None


@pytest.fixture
def spying():
    """Collects, inside `with spying() as found`, what is done and must not be."""
    return watched


@contextmanager
def limited(mebibytes):
    """Let this process take no more beyond what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * MEBIBYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def little_memory():
    """Within `with little_memory()`, this process gets no more than so many mebibytes."""
    return lambda mebibytes=1024: limited(mebibytes)


def times(folder):
    return {str(path): path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def listing():
    """When each file of a folder was written."""
    return times


@pytest.fixture(scope="package")
def original(tiny, nmt, tmp_path_factory):
    """A trained run with a shortlist; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("original") / "run"
    shutil.copytree(tiny.run, folder)
    assert nmt("shortlist", folder).code == 0
    package.load(folder, device="cpu", shortlist=folder / "shortlist.npz").translate(["나는"])
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def refused(run, nmt):
    """Translates with the model, and gives the one line with which that is refused."""

    def refused(*options):
        before = times(run)
        with limited(1024), watched() as found:
            ended = nmt("translate", "--model", run, "--device", "cpu", *options, stdin="나는\n")
        assert (ended.code, ended.out) == (4, ""), ended
        assert re.fullmatch(r"error: [^\n]{1,500}\n", ended.err), ended.err
        assert found == []
        assert times(run) == before
        return ended.err.removeprefix("error: ").replace(str(run), "RUN").removesuffix("\n")

    return refused


def fit_manifest(run):
    """Make the manifest fit the files, as whoever means harm would."""
    checkpoint = run / "checkpoints" / STEP
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest.pop(SEAL, None)
    for name in (WEIGHTS, STATE):
        content = (checkpoint / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"size": len(content), "sha256": digest}
    digest = hashlib.sha256((run / "tokenizer/shared.model").read_bytes()).hexdigest()
    manifest["tokenizers"] = {"src": digest, "tgt": digest}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def seal(run):
    """Makes the manifest fit the files."""
    return lambda: fit_manifest(run)


@pytest.fixture
def write_header(run):
    """Changes the header of the weights, and makes the manifest fit."""

    def write_header(change):
        path = run / "checkpoints" / STEP / WEIGHTS
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = change(json.loads(content[8 : 8 + size]))
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
        fit_manifest(run)

    return write_header

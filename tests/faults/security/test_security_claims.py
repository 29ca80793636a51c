"""R8: sizes that a file claims are compared with what there is."""

import gzip
import json
import re
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from nmt.errors import ModelError
from nmt.text.lines import read_lines
from nmt.training.checkpoint import SEAL, verify

STEP = "step-00000200"
WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"


class TestClaims:
    """Sizes that a file claims are compared with what there is before any memory is taken."""

    @pytest.mark.parametrize("key", ["hidden_dim", "embed_dim", "key_dim"])
    @pytest.mark.parametrize("size", [10_000, 1_000_000])
    def test_r8_a_config_that_claims_large_layers_is_refused(self, run, key, size, refused):
        text = (run / "config.yaml").read_text("utf-8")
        (run / "config.yaml").write_text(re.sub(f"{key}: 32", f"{key}: {size}", text), "utf-8")
        assert re.search(
            r"does not fit its config|needs about [\d,]+ GiB for the weights", refused()
        )

    @pytest.mark.parametrize("value", ["1000000000", "1" + "0" * 30, "-1", "0", "1e9", ".inf"])
    def test_r8_a_config_with_impossible_sizes_is_refused(self, run, value, refused):
        text = (run / "config.yaml").read_text("utf-8")
        (run / "config.yaml").write_text(text.replace("embed_dim: 32", f"embed_dim: {value}"))
        assert "model.embed_dim must be" in refused()

    @pytest.mark.parametrize(
        "shape",
        [[10**12], [2**62, 4], [2**63], [2**64], [-1], [0], [1e999], ["a"], 5, None, [[1]],
         [1] * 100_000],
    )  # fmt: skip
    def test_r8_a_header_that_claims_any_shape_is_refused(self, write_header, shape, refused):
        name = "encoder.embedding.weight"
        write_header(lambda header: header | {name: header[name] | {"shape": shape}})
        refused()

    @pytest.mark.parametrize("offsets", [[0, 2**62], [2**63, 2**64], [-4, 0], [4, 0], [0], None])
    def test_r8_a_header_that_claims_any_place_is_refused(self, write_header, offsets, refused):
        name = "encoder.embedding.weight"
        write_header(lambda header: header | {name: header[name] | {"data_offsets": offsets}})
        assert "is not a file of fp32 weights as nmt writes it" in refused()

    @pytest.mark.parametrize("dtype", ["F64", "I32", "I64", "BF16", "F8_E4M3", "object", ""])
    def test_r8_weights_of_another_type_are_refused(self, write_header, dtype, refused):
        name = "encoder.embedding.weight"
        write_header(lambda header: header | {name: header[name] | {"dtype": dtype}})
        refused()

    @pytest.mark.parametrize(
        "text", [b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"\xff" * 9]
    )
    def test_r8_a_header_that_is_no_object_is_refused(self, write_header, text, refused):
        write_header(lambda header: text)
        refused()

    @pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
    def test_r8_a_header_of_any_claimed_length_is_refused(self, run, length, refused, seal):
        path = run / "checkpoints" / STEP / WEIGHTS
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
        seal()
        refused()

    def test_r8_a_header_of_a_million_names_is_not_read(self, write_header, refused):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        write_header(lambda header: {f"w{i}": entry for i in range(100_000)})
        refused()

    def test_weights_that_are_not_finite_are_refused(self, run, refused, seal):
        path = run / "checkpoints" / STEP / WEIGHTS
        content = path.read_bytes()
        path.write_bytes(content[:-4] + struct.pack("<f", float("nan")))
        seal()
        assert re.search(r"[a-z_.0-9]+ is not finite; use an older checkpoint$", refused())

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 500_000,
            '{"a":' * 100_000,
            '{"format_version": ' + "9" * 5000 + "}",
            '{"format_version": 1e999, "nmt_version": "1", "files": {}}',
            '{"format_version": NaN, "nmt_version": "1", "files": {}}',
            '{"format_version": true, "nmt_version": "1", "files": {}}',
            '{"format_version": 1, "format_version": 1, "nmt_version": "1", "files": {}}',
            '{"format_version": 2, "nmt_version": "1\\u001b[2J\\nerror: ", "files": {}}',
            '{"format_version": 1, "nmt_version": "1", "files": []}',
            '{"format_version": 1, "nmt_version": "1", "files": {}}' + " " * (2 << 20),
        ],
        ids=range(10),
    )
    def test_r8_a_manifest_with_anything_in_it_is_one_line(self, run, text, refused):
        (run / "checkpoints" / STEP / MANIFEST).write_text(text)
        assert refused().endswith("manifest.json is missing or damaged; use an older checkpoint")

    @pytest.mark.parametrize(
        "name", ["a" * 5000, "a\0b", "/dev/zero", "..", "", "../../config.yaml"]
    )
    def test_r8_a_manifest_may_list_any_name(self, run, name, nmt):
        """Only the files of a checkpoint are looked at, whatever is listed."""
        path = run / "checkpoints" / STEP / MANIFEST
        manifest = json.loads(path.read_text())
        manifest.pop(SEAL, None)
        manifest["files"][name] = {"size": 0, "sha256": ""}
        path.write_text(json.dumps(manifest))
        assert nmt("translate", "--model", run, "--device", "cpu", stdin="나는\n").code == 0
        with pytest.raises(ModelError, match=r"^[^\n]{1,6000}$"):
            verify(run / "checkpoints" / STEP)

    @pytest.mark.parametrize(
        "text",
        ["[" * 100_000, "a: " * 40_000, "- " * 60_000, "? " * 60_000, "a: {b: " * 15_000,
         "".join(f"k{i}: 1\n" for i in range(10_000)), "'" * 100_001, "#" * 10**8],
        ids=range(8),
    )  # fmt: skip
    def test_r8_a_config_without_end_is_refused_at_once(self, run, text, refused):
        (run / "config.yaml").write_text(text)
        refused()

    @pytest.mark.parametrize("claim", ["compressed", "long", "many", "objects", "beyond"])
    def test_r8_a_shortlist_that_claims_more_than_it_has_is_refused(self, run, claim, refused):
        path = run / "shortlist.npz"
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        name, packing = "candidates.npy", zipfile.ZIP_STORED
        header = entries[name].index(b"\n") + 1
        match claim:
            case "compressed":  # which all is as it should be but for this
                packing = zipfile.ZIP_DEFLATED
            case "long":
                entries[name] = re.sub(rb"\((\d+),\)", b"(99999999999,)", entries[name], count=1)
            case "many":
                entries[name] = entries[name][:header]
            case "objects":
                entries[name] = entries[name].replace(b"<u4", b"|O8", 1)
            case "beyond":
                entries[name] = entries[name][:-4] + b"\xff" * 4
        with zipfile.ZipFile(path, "w", packing) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
        assert refused("--shortlist").startswith("RUN/shortlist.npz: is damaged, or no shortlist")

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("meta.json", lambda text: text.replace(b"<u2", b"|O")),
            ("meta.json", lambda text: text.replace(b"<u2", b"<i2")),
            ("meta.json", lambda text: text.replace(b"<u2", b"(99999999,)u2")),
            ("meta.json", lambda text: b"[" * 100_000),
            ("src.bin", lambda content: b"\xff" * len(content)),
            ("src.offsets.bin", lambda content: b"\xff" * len(content)),
            ("src.offsets.bin", lambda content: content[:8] + content[16:24] + content[8:16]
             + content[24:]),
            ("lines.bin", lambda content: content[:-8]),
        ],
    )  # fmt: skip
    def test_r8_a_token_store_with_anything_in_it_is_one_line(
        self, run, name, change, nmt, listing, little_memory
    ):
        path = run / "data" / "train" / name
        path.write_bytes(change(path.read_bytes()))
        before = listing(run)
        with little_memory():
            ended = nmt("shortlist", run)
        assert ended.code == 4
        assert re.fullmatch(
            r"error: .*/data/train: .*; delete it, and it is made anew\n", ended.err
        )
        assert listing(run) == before


def test_a_compressed_text_takes_time_not_memory(tmp_path, little_memory):
    """100 MB of lines in 100 kB."""
    with gzip.open(tmp_path / "bomb.gz", "wb") as stream:
        for _ in range(100):
            stream.write((b"x" * 999 + b"\n") * 1000)
    with little_memory(64):
        assert sum(map(len, read_lines(tmp_path / "bomb.gz"))) == 100 * 999 * 1000


class TestTraining:
    """A config to train with has nothing to be compared with but the machine."""

    @pytest.mark.parametrize("command", ["train", "check"])
    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("model.encoder.hidden_dim", 10**9, "must be <= 1000000, but is 1000000000"),
            ("model.encoder.num_layers", 10**9, "must be <= 100, but is 1000000000"),
            ("model.encoder.hidden_dim", 10**6, "needs about"),
            ("model.embed_dim", 10**6, "needs about"),
            ("validation.beam_size", 10**9, "must be <= 1000, but is 1000000000"),
        ],
    )
    def test_absurd_sizes_are_one_line_before_they_are_allocated(
        self, tiny, tmp_path, nmt, monkeypatch, command, key, value, said, little_memory
    ):
        monkeypatch.chdir(tiny.folder)
        folder = shutil.copytree(
            Path(tiny.run) / "tokenizer", tmp_path / "new" / "tokenizer"
        ).parent
        monkeypatch.setattr("nmt.build.model.machine_memory", lambda: 1 << 30)
        overrides = ["--set", f"{key}={value}", "--set", f"run_dir={folder}"]
        if command == "train":
            shutil.rmtree(folder)
        with little_memory():
            ended = nmt(command, "--config", tiny.config, *overrides)
        assert ended.code == 2, ended.err
        (problem,) = [line for line in ended.err.split("\n") if line.startswith("error: ")]
        assert said in problem
        if said == "needs about":
            assert re.fullmatch(
                r"error: model: needs about [\d,]+ GiB for the weights, but this machine has "
                r"1\.0 GiB of memory; make its layers smaller",
                problem,
            )

    def test_the_memory_of_the_machine_is_known(self, little_memory):
        from nmt.build.model import machine_memory

        there = machine_memory()
        assert 1 << 28 < there < 1 << 50
        with little_memory():
            assert machine_memory() <= there

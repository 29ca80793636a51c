"""A model that an earlier version has stored translates as it did there (R12).

`scripts/make_stored_model.py` writes `stored_models/VERSION/MODEL`, each with `expected.jsonl`.
"""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import nmt as package
from nmt.config import load_config
from nmt.training.checkpoint import FORMAT_VERSION

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "stored_models"
MODELS = {
    f"{path.parent.parent.name}/{path.parent.name}": path.parent
    for path in sorted(STORED.glob("*/*/expected.jsonl"))
}
TOLERANCE = 1e-4  # nats, or attention

each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def objects(jsonl):
    return [json.loads(line) for line in jsonl.split("\n")[:-1]]


def expected_of(model):
    return objects((model / "expected.jsonl").read_text(encoding="utf-8"))


def sources_of(model):
    return "".join(entry["src"] + "\n" for entry in expected_of(model))


@each_model
@pytest.mark.parametrize(("search", "beam_size"), [("beam", 5), ("greedy", 1)])
def test_translations_are_what_they_were(nmt, model, search, beam_size):
    command = ("translate", "--model", model, "--device", "cpu", "--format", "jsonl")
    ended = nmt(*command, "--beam-size", beam_size, stdin=sources_of(model))
    assert ended.code == 0, ended.err
    translations = objects(ended.out)
    for entry, translation in zip(expected_of(model), translations, strict=True):
        found, expected = translation["hypotheses"][0], entry[search]
        assert found["text"] == expected["text"]
        assert found["tokens"] == expected["tokens"]
        for name in ("score", "log_prob", "token_log_probs"):
            assert found[name] == pytest.approx(expected[name], rel=0, abs=TOLERANCE), entry["src"]


@each_model
def test_attention_is_what_it_was(nmt, model):
    command = ("attn-dump", "--model", model, "--device", "cpu", "--beam-size", 5)
    ended = nmt(*command, "--src", "-", stdin=sources_of(model))
    assert ended.code == 0, ended.err
    for entry, found in zip(expected_of(model), objects(ended.out), strict=True):
        expected = entry["attention"]
        assert found["src_tokens"] == expected["src_tokens"]
        assert found["tgt_tokens"] == expected["tgt_tokens"]
        weights = np.array(found["weights"])
        np.testing.assert_allclose(weights, expected["weights"], rtol=0, atol=TOLERANCE)


@each_model
def test_the_python_api_translates_the_same(model):
    expected = expected_of(model)
    translator = package.load(model, device="cpu", beam_size=5)
    translations = translator.translate([entry["src"] for entry in expected])
    assert [t.text for t in translations] == [entry["beam"]["text"] for entry in expected]


@each_model
def test_a_newer_format_asks_for_an_upgrade(nmt, model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    [manifest] = copy.glob("**/manifest.json")
    values = json.loads(manifest.read_text(encoding="utf-8"))
    newer = {"format_version": FORMAT_VERSION + 1, "nmt_version": "99.0.0"}
    manifest.write_text(json.dumps(values | newer), encoding="utf-8")
    ended = nmt("translate", "--model", copy, stdin="나는 밥을 먹었다\n")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == (
        f"error: {manifest.parent}: was made by nmt 99.0.0; upgrade nmt to read it\n"
    )


@each_model
def test_what_is_stored_would_show_a_change(model):
    """Blank, unknown, split and ordinary sentences; translations that are none of chance."""
    entries = expected_of(model)
    assert [entry["beam"]["text"] for entry in entries if not entry["src"].strip()] == ["", ""]
    assert any("日本語" in entry["src"] for entry in entries)
    limit = load_config(str(model / "config.yaml")).data.max_length
    assert max(len(entry["attention"]["src_tokens"]) for entry in entries) > limit + 1
    ordinary = entries[-8:]
    assert len({entry["beam"]["text"] for entry in ordinary}) == 8
    known = set((ROOT / "data/demo/train.en").read_text(encoding="utf-8").split())
    words = [word for entry in ordinary for word in entry["beam"]["text"].split()]
    assert np.mean([word in known for word in words]) > 0.9
    certain = [entry["beam"]["log_prob"] / len(entry["beam"]["tokens"]) for entry in ordinary]
    assert np.mean(certain) > -0.5


@each_model
def test_a_stored_model_is_that_of_its_version(model):
    [manifest] = model.glob("**/manifest.json")
    values = json.loads(manifest.read_text(encoding="utf-8"))
    assert values["nmt_version"] == model.parent.name
    assert values["format_version"] <= FORMAT_VERSION


def test_this_version_has_stored_its_models():
    """Of each minor version one is enough: a patch version translates the same."""
    minor = package.__version__.rpartition(".")[0]
    versions = {name.partition("/")[0].rpartition(".")[0] for name in MODELS}
    assert minor in versions, "run scripts/make_stored_model.py, and commit what it writes"


def test_what_is_stored_is_never_written_anew(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("make_stored_model")
    version = next(iter(MODELS)).partition("/")[0]
    monkeypatch.setattr(package, "__version__", version)
    monkeypatch.setattr("sys.argv", ["make_stored_model.py"])
    with pytest.raises(SystemExit, match=r"0: is there already, and what a version has stored"):
        script.main()

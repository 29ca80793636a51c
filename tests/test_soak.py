"""The soak test: what it counts as lost, what it calls a good end, and a short one."""

import importlib
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from nmt.training.checkpoint import point, write_checkpoint

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
STATE = {
    "trainer": {
        "progress": {"step": 2, "best_score": 1.5},
        "optimizer": {"state": {0: {"exp_avg": torch.arange(6.0).view(2, 3)}}, "param_groups": []},
        "random": torch.get_rng_state(),
        "trained_weights": [torch.ones(3)],
    }
}
WEIGHTS = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
EVENTS = [
    {"event": "train", "time": 1.5, "step": 1, "loss": 3.0, "tokens_per_second": 7.0},
    {"event": "valid", "time": 2.5, "step": 2, "bleu": 0.0, "seconds": 0.1},
]


@pytest.fixture(scope="module", autouse=True)
def scripts_are_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.fixture
def compare():
    return importlib.import_module("soak_compare")


@pytest.fixture
def faults():
    return importlib.import_module("soak_faults")


def write_run(path, weights=WEIGHTS, state=STATE, events=EVENTS):
    for step in (1, 2):
        checkpoint = write_checkpoint(path, step, weights, state, {})
    point(path / "best", checkpoint)
    text = "".join(json.dumps(event) + "\n" for event in events)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def expected(tmp_path):
    return write_run(tmp_path / "expected")


def changed(values, *keys, value):
    """A copy of nested dictionaries in which one value is another."""
    if not keys:
        return value
    return {**values, keys[0]: changed(values[keys[0]], *keys[1:], value=value)}


def test_equal_runs_have_lost_nothing(compare, expected, tmp_path):
    later = [{**event, "time": 99.0} for event in EVENTS]
    assert compare.compare_runs(write_run(tmp_path / "run", events=later), expected) == (
        compare.Loss()
    )


def test_each_byte_of_a_weight_counts_in_each_checkpoint(compare, expected, tmp_path):
    weights = {**WEIGHTS, "a": torch.tensor([0.0, 1.0, 2.0, -3.0])}  # the sign: one byte
    loss = compare.compare_runs(write_run(tmp_path / "run", weights), expected)
    assert (loss.num_bytes, loss.where) == (2, ["latest: /a/2", "best: /a/2"])


@pytest.mark.parametrize(
    ("keys", "value", "num_bytes"),
    [
        (("progress", "best_score"), 1.5000001, 1),
        (("progress", "best_score"), None, 1),
        (("optimizer", "state", 0, "exp_avg"), -torch.arange(6.0).view(2, 3), 6),
        (("optimizer", "state", 0, "exp_avg"), torch.arange(6.0).view(3, 2), 3),
        (("trained_weights",), [torch.tensor([1.0, 1.0, -1.0])], 1),
        (("trained_weights",), [torch.ones(2)], 5),
        (("random",), torch.get_rng_state() ^ 1, len(torch.get_rng_state())),
    ],
)
def test_nothing_of_the_training_state_is_forgotten(
    compare, expected, tmp_path, keys, value, num_bytes
):
    state = changed(STATE, "trainer", *keys, value=value)
    loss = compare.compare_runs(write_run(tmp_path / "run", state=state), expected)
    path = "/trainer/" + "/".join(map(str, keys))
    assert loss.num_bytes == 2 * num_bytes
    assert all(where.split(": ")[1].startswith(path) for where in loss.where)


def test_lines_of_the_metrics_are_counted_once(compare, expected, tmp_path):
    run = write_run(tmp_path / "run", events=[EVENTS[0], EVENTS[0], EVENTS[1]])
    loss = compare.compare_runs(run, expected)
    assert (loss.lines_lost, loss.lines_doubled, loss.num_bytes) == (0, 1, 0)
    loss = compare.compare_runs(expected, run)
    assert (loss.lines_lost, loss.lines_doubled) == (1, 0)
    (run / "metrics.jsonl").write_text(json.dumps(EVENTS[0]) + '\n{"event": "val\n')
    loss = compare.compare_runs(run, expected)
    assert (loss.lines_lost, loss.lines_doubled) == (1, 1)


def test_another_best_checkpoint_is_a_loss(compare, expected, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "best").write_text("checkpoints/step-00000001\n")
    assert compare.compare_runs(run, expected).where == [
        "best: checkpoints/step-00000001 instead of checkpoints/step-00000002"
    ]


@pytest.mark.parametrize("kind", ["truncated", "flipped byte", "no manifest"])
@pytest.mark.parametrize("seed", range(4))
def test_damage_meets_the_newest_and_leaves_one_that_is_good(compare, faults, expected, kind, seed):
    draw = random.Random(seed)
    assert faults.damage(expected, kind, draw)
    assert [path.name for path in compare.good_checkpoints(expected)][:1] == ["step-00000001"]
    if kind != "flipped byte":  # in the manifest it may do no harm
        assert len(compare.good_checkpoints(expected)) == 1
        assert not faults.damage(expected, kind, draw)


def test_what_an_interrupted_write_leaves_is_found(compare, expected):
    (expected / ".lock").touch()
    assert compare.stray_files(expected) == []
    names = ["checkpoints/step-00000003.tmp-12", ".best.abc", "checkpoints/step-00000001.replaced"]
    for name in names:
        (expected / name).mkdir()
    assert sorted(compare.stray_files(expected)) == sorted(expected / name for name in names)


@pytest.fixture
def command(faults, tmp_path):
    """Runs a Python program as if it was nmt."""

    def run(program, strike=None):
        folder = tmp_path / "program"
        (folder / "nmt").mkdir(parents=True)
        (folder / "nmt" / "__init__.py").touch()
        (folder / "nmt" / "__main__.py").write_text(program)
        return faults.run_nmt([], folder, strike)

    return run


def test_an_end_without_a_fault_is_fine_only_with_0(command, faults):
    assert command("raise SystemExit(5)").code == 5
    for code, fine in ((0, True), (5, False), (1, False), (-9, False)):
        assert faults.Ended(code, "", False, 0).is_fine(None) is fine


@pytest.mark.parametrize("fault", ["SIGTERM", "SIGINT", "SIGINT twice", "SIGKILL"])
def test_a_signal_arrives(command, faults, fault):
    strike = faults.Strike(fault, 0.3)
    ended = command("import time; time.sleep(30)", strike)
    number = getattr(signal, fault.partition(" ")[0])
    assert (ended.code, ended.was_struck) == (-number, True)
    assert ended.is_fine(strike)
    assert not faults.Ended(1, "", True, 0).is_fine(strike)


@pytest.mark.parametrize(
    ("phase", "old", "sign"),
    [
        ("save", "checkpoints/step-00000001.tmp-7", "checkpoints/step-00000002.tmp-8"),
        ("updates", "log.txt", "metrics.jsonl"),
    ],
)
def test_a_fault_waits_for_its_phase(command, faults, tmp_path, phase, old, sign):
    run = tmp_path / "run"
    (run / old).mkdir(parents=True)
    program = (
        "import time, pathlib\n"
        "time.sleep(0.3)\n"
        f"pathlib.Path({str(run / sign)!r}).mkdir()\n"
        "time.sleep(30)\n"
    )
    ended = command(program, faults.Strike("SIGKILL", 0.0, phase, run))
    assert (ended.code, ended.was_struck) == (-9, True)
    assert (run / sign).is_dir()


def test_a_fault_may_come_too_late(command, faults):
    ended = command("", faults.Strike("SIGKILL", 20.0))
    assert (ended.code, ended.was_struck) == (0, False)


def test_a_full_disk_arrives(command, faults):
    program = (
        "import time\n"
        "for _ in range(100):\n"
        "    time.sleep(0.05)\n"
        "    with open('big', 'wb') as file: file.write(bytes(2000))\n"
    )
    ended = command(program, faults.Strike("full disk", 0.2, size=1000))
    assert (ended.code, ended.was_struck) == (1, True)
    assert "OSError: [Errno 27] File too large" in ended.message


def test_a_process_that_is_left_behind_is_found_and_ended(command, faults, monkeypatch):
    monkeypatch.setattr(faults, "SECONDS_TO_ORPHANS", 0.1)
    program = (
        "import os, time\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(60)\n"
        "open('pid', 'w').write(str(child))\n"
    )
    ended = command(program)
    assert (ended.code, ended.orphans) == (0, 1)
    assert not ended.is_fine(None)


@pytest.mark.slow
def test_a_short_soak_loses_nothing(monkeypatch, capsys, tmp_path):
    soak = importlib.import_module("soak")
    monkeypatch.setattr(soak, "FEWEST_FAULTS", 3)
    monkeypatch.setattr(soak, "MOST_FAULTS", 3)
    arguments = ["--minutes", "0", "--updates", "24", "--json", str(tmp_path / "soak.json")]
    monkeypatch.setattr(sys, "argv", ["soak.py", *arguments])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    soak.main()
    found = json.loads((tmp_path / "soak.json").read_bytes())
    assert (found["runs"], found["starts"] >= 4, found["translations"]) == (1, True, 3)
    assert found["bytes_lost"] == found["metrics_lines_lost"] == found["metrics_lines_doubled"] == 0
    assert found["problems"] == []
    assert found["survived"] == found["faults"]
    assert "| runs compared with undisturbed ones | " in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["soak.json"]


@pytest.mark.slow
def test_a_loss_is_reported(monkeypatch, capsys, tmp_path):
    soak = importlib.import_module("soak")

    def lose(run, reference):
        return importlib.import_module("soak_compare").Loss(1, 0, 0, ["latest: /a"])

    monkeypatch.setattr(soak, "compare_runs", lose)
    monkeypatch.setattr(soak, "FEWEST_FAULTS", 0)
    monkeypatch.setattr(soak, "MOST_FAULTS", 0)
    monkeypatch.setattr(sys, "argv", ["soak.py", "--minutes", "0", "--updates", "4"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        soak.main()
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "| bytes lost | 1 |" in printed.out
    assert "storm/run: latest: /a\n" in printed.err
    [folder] = tmp_path.glob("nmt-soak-*")
    assert (folder / "0000" / "storm" / "run").is_dir()
    shutil.rmtree(folder)

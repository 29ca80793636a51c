"""The benchmarks: what they count, what they run on, and what they write."""

import importlib
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
ROW_KEYS = {"size", "order", "precision", "beam", "batch", "tokens_per_second", "limit_share"}


@pytest.fixture(scope="module", autouse=True)
def scripts_are_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.fixture
def flops():
    return importlib.import_module("bench_flops")


@pytest.fixture
def setup():
    return importlib.import_module("bench_setup")


@pytest.fixture
def training():
    return importlib.import_module("bench_training")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs scripts/bench.py with arguments and gives what it prints."""

    def run_bench(*arguments):
        monkeypatch.setattr("sys.argv", ["bench.py", *map(str, arguments)])
        importlib.import_module("bench").main()
        return capsys.readouterr()

    return run_bench


def product(rows, columns):
    """Operations of a (rows x columns) matrix times a vector."""
    return 2 * rows * columns


# E 2, encoder 2 x 3 with two layers, H 5 with two layers, A 7, V 11; 13 source positions seen by
# each target token, 1.5 source tokens for each. M is 6 and R is 5.
LSTM = ("lstm", 2, 3, 2, 5, 2, 7, 11)
SEEN, PER_TARGET = 13, 1.5


@pytest.mark.parametrize(
    ("order", "first_input", "readout_input"),
    [("bahdanau", 2 + 6, 5 + 6 + 2), ("luong-feeding", 2 + 5, 6 + 5), ("luong", 2, 6 + 5)],
)
def test_operations_are_those_of_every_matrix_of_the_paper(
    flops, order, first_input, readout_input
):
    found = flops.forward_flops(flops.Shape(*LSTM), order, flops.Lengths(SEEN, PER_TARGET))
    first_layer = 2 * (product(4 * 3, 2) + product(4 * 3, 3))  # both directions
    second_layer = 2 * (product(4 * 3, 6) + product(4 * 3, 3))
    assert found.encoder == PER_TARGET * (first_layer + second_layer + product(7, 6))
    assert found.gates == (
        product(4 * 5, first_input) + product(4 * 5, 5) + product(4 * 5, 5) + product(4 * 5, 5)
    )
    # of each position: add the query to the key, tanh, and v; then weight the state
    assert found.attention == product(7, 5) + SEEN * (7 + 7 + product(1, 7) + product(1, 6))
    assert found.readout == product(5, readout_input)
    assert found.vocabulary == product(11, 5)
    assert found.decoder == found.gates + found.attention + found.readout + found.vocabulary


def test_training_takes_three_passes_and_a_beam_takes_the_decoder_once_for_each_hypothesis(flops):
    shape, lengths = flops.Shape(*LSTM), flops.Lengths(SEEN, PER_TARGET)
    forward = flops.forward_flops(shape, "bahdanau", lengths)
    whole = flops.training_flops(shape, "bahdanau", lengths)
    assert whole == 3 * (forward.encoder + forward.decoder)
    beam = flops.decoding_flops(shape, "bahdanau", lengths, 5)
    assert beam == forward.encoder + 5 * forward.decoder


@pytest.mark.parametrize(
    ("order", "peak", "tokens_per_second"),
    [
        ("bahdanau", 180e9, 2740),
        ("luong-feeding", 180e9, 2990),
        ("bahdanau", 437e9, 6660),
        ("luong-feeding", 437e9, 7270),
    ],
)
def test_limits_of_the_small_model_are_those_worked_out_before(
    flops, setup, order, peak, tokens_per_second
):
    work = flops.training_flops(setup.SHAPES["small"], order, flops.Lengths(14, 1))
    assert peak / work == pytest.approx(tokens_per_second, rel=2e-3)


def test_the_corpus_has_the_lengths_of_multi30k_and_its_batches_hold_little_padding(
    setup, training
):
    plan_epoch = importlib.import_module("nmt.data.batches").plan_epoch
    src, tgt = setup.corpus_lengths(setup.NUM_PAIRS)
    assert len(src) == len(tgt) == 29_000
    assert tgt.mean() == pytest.approx(14.1, abs=0.1)
    assert tgt.std() == pytest.approx(4.5, abs=0.1)
    assert src.mean() == pytest.approx(14.6, abs=0.4)
    plan = plan_epoch(src, tgt, 1500, 1, 0)
    assert training.padding(plan, tgt) < 0.06
    chosen = training.typical(plan, tgt, 4)
    assert np.concatenate([tgt[batch] for batch in chosen]).mean() == pytest.approx(14.1, abs=1)


def test_padding_and_lengths_are_counted_with_the_end_of_sentence(setup, training):
    lengths = np.array([1, 3, 3])
    plan = [np.array([0, 1]), np.array([2])]
    assert training.padding(plan, lengths) == pytest.approx(2 / 12)
    found = setup.mean_lengths(np.array([1, 3]), np.array([5, 1]))
    assert (found.attended, found.src_per_tgt) == ((6 * 2 + 2 * 4) / 8, 6 / 8)


def test_the_update_that_is_taken_apart_is_that_of_the_trainer(setup, training, tmp_path):
    bench = setup.Bench(torch.device("cpu"), setup.QUICK, tmp_path)
    shape = setup.SHAPES["tiny"]
    lengths = setup.corpus_lengths(20)
    batches = setup.make_batches(tmp_path / "store", *lengths, shape.vocab_size, 1000)
    fixed = training.FixedBatches(batches.store, 1000, 1, None, (np.arange(20),))
    found = []
    for split in (False, True):
        config = setup.make_config(shape, "bahdanau")
        model = setup.make_model(config, bench.device)
        trainer = training.build_trainer(config, model, fixed, bench.device)
        trainer.clip_norm = 0.01
        torch.manual_seed(2)  # of dropout
        if split:
            trainer.optimizer.param_groups[0]["lr"] = config.training.learning_rate
            stages = training.split_update(bench, trainer, fixed, fixed.chosen[0])
            assert list(stages) == list(training.STAGES)
        else:
            trainer.train(1, training.NoHooks())
        moments = [trainer.optimizer.state[p]["exp_avg"] for p in model.parameters()]
        found.append([*model.parameters(), *moments])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts)


def test_a_quick_run_writes_all_its_rows(run, tmp_path):
    printed = run("--quick", "--json", tmp_path / "bench.json")
    found = json.loads((tmp_path / "bench.json").read_bytes())
    assert set(found["gemm_flops"]) - {"fp32-onednn"} == {"fp32", "bf16", "int8"}
    for row in found["train"] + found["decode"]:
        assert set(row) >= ROW_KEYS
        assert row["size"] == "tiny"
        assert row["limit_share"] > 0
        limit = row["tokens_per_second"] / row["limit_share"]
        assert row["limit_tokens_per_second"] == pytest.approx(limit)
    orders = {"bahdanau", "luong-feeding", "luong"}
    assert {row["order"] for row in found["train"]} == orders
    assert {row["precision"] for row in found["train"]} == {"fp32", "bf16"}
    for row in found["train"]:
        assert math.fsum(row["stages"].values()) == pytest.approx(1)
    assert {row["order"] for row in found["decode"]} == orders
    assert {row["precision"] for row in found["decode"]} == {"fp32", "bf16", "int8"}
    assert {(row["beam"], row["batch"]) for row in found["decode"]} >= {(1, 2), (2, 2)}
    assert {"--help", "translate"} < {row["command"] for row in found["commands"]}
    assert found["tokenization"]["tokens_per_second"] > found["tokenization"]["lines_per_second"]
    assert printed.out.count("| `tiny` bahdanau |") == 2 + 3 * 2 * 2
    assert "limit" not in printed.out.split("| training")[0]
    assert "training tiny luong bf16" in printed.err


def test_a_quick_growth_run_writes_tables_and_a_picture(run, tmp_path):
    table, plot = tmp_path / "growth.md", tmp_path / "growth.svg"
    run("--quick", "--growth", table, "--plot", plot, "--json", tmp_path / "growth.json")
    text = table.read_text(encoding="utf-8")
    assert text.count("\n| --- | ---: |") == 6
    assert text.count("of it attention") == 2
    points = json.loads((tmp_path / "growth.json").read_bytes())["growth"]
    assert [p["value"] for p in points if p["parameter"] == "length"] == [10, 20]
    assert all(p["decoding"] > 0 for p in points)
    assert all((p["training"] is None) == (p["parameter"] == "beam") for p in points)
    picture = ET.fromstring(plot.read_text(encoding="utf-8"))
    assert len(picture.findall("{*}g")) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "small,large"], "--sizes: must be of tiny, small, base, gnmt, but has large"),
        (["--threads", "0"], "--threads: must be at least 1, but is 0"),
        (["--repeats", "0"], "--repeats: must be at least 1, but is 0"),
        (["--plot", "x.svg"], "--plot needs --growth"),
    ],
)
def test_impossible_options_are_refused(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err

import importlib
import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nmt.build.data import load_tokenizers
from nmt.build.model import build_model
from nmt.build.saved import load
from nmt.text.tokenizer import EOS_ID

ROOT = Path(__file__).resolve().parent.parent

FAKE = """
import json, sys
print(json.dumps({"versions": {}, "parameters": 7, "job": json.loads(sys.argv[1])}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    answer = {"tokens": 100, "seconds": order["seconds"], "cpu_seconds": 0.5, "steps": 1}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def modules():
    names = ("", "_child", "_figures", "_joey", "_nmt")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield {name: importlib.import_module(f"compare_joeynmt{name}") for name in names}


@pytest.fixture
def exits(monkeypatch):
    """`os._exit` raises, so that the end of a child can be seen."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)


class Output(io.StringIO):
    """Remembers what was written after it was closed, as a pipe's other end does."""

    def close(self):
        self.answers = [json.loads(line) for line in self.getvalue().split("\n") if line]


class Clock:
    """Time passes only when told to."""

    now = 0.0

    def __call__(self):
        return self.now


def converse(modules, orders, loop, *, warm_up=2, decode=lambda: 10):
    """The answers of a meter to orders while a training loop runs."""
    clock, output = Clock(), Output()
    commands = io.StringIO("".join(json.dumps(order) + "\n" for order in orders))
    meter = modules["_child"].Meter(
        decode, {"name": "x"}, warm_up=warm_up, commands=commands, answers=output, clock=clock
    )
    with pytest.raises(SystemExit):
        loop(meter, clock)
    return output.answers


def steps(meter, clock, tokens=5, seconds=1.0):
    while True:
        clock.now += seconds
        meter.tick(tokens)


def test_the_meter_introduces_itself_after_the_warm_up(modules, exits):
    seen = []

    def loop(meter, clock):
        for step in range(3):
            seen.append(step)
            meter.tick(5)

    assert converse(modules, [], loop) == [{"name": "x"}]
    assert seen == [0, 1]


def test_a_training_turn_is_whole_steps_of_at_least_the_time_asked_for(modules, exits):
    orders = [{"task": "train", "seconds": 2.5}, {"task": "train", "seconds": 1.0}]
    _, first, second = converse(modules, orders, steps)
    assert (first["tokens"], first["seconds"], first["steps"]) == (15, 3.0, 3)
    assert (second["tokens"], second["seconds"], second["steps"]) == (5, 1.0, 1)


def test_the_step_that_was_under_way_while_others_had_their_turn_is_not_timed(modules, exits):
    def loop(meter, clock):
        meter.tick(1000)  # warm-up
        clock.now += 50  # the next one had begun before the order came
        meter.tick(1000)
        steps(meter, clock)

    _, turn = converse(modules, [{"task": "train", "seconds": 2.0}], loop, warm_up=1)
    assert (turn["tokens"], turn["seconds"]) == (10, 2.0)


def test_a_decoding_turn_repeats_the_search_until_the_time_is_over(modules, exits):
    def loop(meter, clock):
        def decode():
            clock.now += 0.4
            return 7

        meter.decode = decode
        steps(meter, clock)

    _, turn, short = converse(
        modules, [{"task": "decode", "seconds": 1.0}, {"task": "decode", "seconds": 0.0}], loop
    )
    assert (turn["tokens"], turn["steps"], turn["seconds"]) == (21, 3, pytest.approx(1.2))
    assert (short["tokens"], short["steps"]) == (7, 1)


def options(modules, *more):
    return modules[""].parse_arguments(["--joeynmt-python", "joey/bin/python", *more])


def test_joeynmt_comes_first_and_int8_only_decodes(modules):
    systems = modules[""].line_up(options(modules))
    assert [(s.name, s.precision, list(s.tasks), s.shortlist) for s in systems] == [
        ("JoeyNMT", "fp32", ["train", "decode"], False),
        ("nmt", "fp32", ["train", "decode"], False),
        ("nmt", "bf16", ["train", "decode"], False),
        ("nmt", "int8", ["decode"], False),
        ("nmt", "int8", ["decode"], True),
    ]
    [full, short] = modules["_figures"].rows(
        [replace(s, about={"parameters": 1, "versions": {}}) for s in systems[3:]]
    )
    assert (full["system"], short["system"]) == ("nmt", "nmt, shortlist")
    assert len(modules[""].line_up(options(modules, "--precisions", "fp32"))) == 2
    assert systems[0].python == "joey/bin/python"
    assert systems[1].python == sys.executable


def test_systems_take_turns(modules, capsys):
    order = []

    class Child:
        def __init__(self, system):
            self.system = system

        def run(self, task, seconds):
            order.append((task, self.system.precision, seconds))
            return modules["_figures"].Turn(60, 2.0, 1.0, 1)

    systems = modules[""].line_up(options(modules, "--precisions", "bf16", "int8"))
    modules[""].measure([Child(s) for s in systems], 2, {"train": 3.0, "decode": 1.0})
    once = [("train", "fp32", 3.0), ("train", "bf16", 3.0)]
    once += [("decode", p, 1.0) for p in ("fp32", "bf16", "int8", "int8")]
    assert order == once + once
    assert [turn.speed for turn in systems[0].turns["train"]] == [30.0, 30.0]
    assert all(len(system.turns["decode"]) == 2 for system in systems)
    assert "JoeyNMT" in capsys.readouterr().err


def system(modules, name, train, decode, **about):
    figures = modules["_figures"]
    turns = {
        task: [figures.Turn(speed * 2, 2.0, 1.0, 1) for speed in speeds]
        for task, speeds in (("train", train), ("decode", decode))
        if speeds
    }
    about = {"parameters": 1234, "versions": {name: "1"}, **about}
    return figures.System(name, "fp32", "python", "script", ("train",), about=about, turns=turns)


def test_ratios_are_those_of_the_medians(modules):
    found = modules["_figures"].rows(
        [
            system(modules, "slow", [10, 30, 20], [5, 5, 5], padding=0.5),
            system(modules, "fast", [90, 60, 70], [50, 1, 40]),
        ]
    )
    assert [row["train_tokens_per_second"] for row in found] == [20, 70]
    assert [row["train_ratio"] for row in found] == [1.0, 3.5]
    assert [row["decode_ratio"] for row in found] == [1.0, 8.0]
    assert [turn["tokens"] for turn in found[0]["train_turns"]] == [20, 60, 40]
    json.dumps(found)


def test_the_table_has_a_dash_for_what_was_not_measured(modules):
    found = modules["_figures"].rows(
        [
            system(modules, "slow", [1000], [500], padding=0.531),
            system(modules, "fast", [], [1250]),
        ]
    )
    lines = modules["_figures"].table(found).split("\n")
    assert lines[2] == "| slow | fp32 | 1,000 | 1.00 | 500 | 1.00 | 53.1% | 1,234 |"
    assert lines[3] == "| fast | fp32 | – | – | 1,250 | 2.50 | – | 1,234 |"
    assert len({line.count("|") for line in lines}) == 1


def test_a_child_is_asked_and_closed(modules, monkeypatch, tmp_path):
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(modules[""], "HERE", tmp_path)
    fake = modules["_figures"].System("fake", "fp32", sys.executable, "fake.py", ("train",))
    child = modules[""].Child(fake, {"threads": 1, "word": "ü"}, tmp_path / "log")
    assert fake.about["job"] == {"threads": 1, "word": "ü"}
    assert child.run("train", 4.0).speed == 25.0
    child.close()
    assert child.process.returncode == 0


def test_a_child_that_fails_is_reported_with_the_end_of_its_log(modules, monkeypatch, tmp_path):
    (tmp_path / "fake.py").write_text("raise SystemExit('no torch here')", encoding="utf-8")
    monkeypatch.setattr(modules[""], "HERE", tmp_path)
    fake = modules["_figures"].System("JoeyNMT", "fp32", sys.executable, "fake.py", ("train",))
    with pytest.raises(SystemExit) as error:
        modules[""].Child(fake, {"threads": 1}, tmp_path / "log")
    end = "no torch here\n\nJoeyNMT (fp32): ended with exit code 1; its messages are above"
    assert str(error.value) == end


def test_a_python_that_is_not_there_is_reported(modules, tmp_path):
    fake = modules["_figures"].System("JoeyNMT", "fp32", "no/python", "fake.py", ("train",))
    with pytest.raises(SystemExit, match=r"^no/python: cannot be run: No such file"):
        modules[""].Child(fake, {"threads": 1}, tmp_path / "log")


def test_missing_text_is_reported(modules, tmp_path):
    with pytest.raises(SystemExit, match=r"must hold train\.de or train\.de\.gz; data/README\.md"):
        modules[""].find_text(tmp_path, "train.de")


def test_missing_patches_are_given_where_they_are_missing(modules, monkeypatch):
    class Processor:
        pass

    joey = modules["_joey"]
    monkeypatch.setattr(joey.sentencepiece, "SentencePieceProcessor", Processor)
    monkeypatch.delitem(sys.modules, "importlib_metadata", raising=False)
    joey.add_missing_dependency()
    joey.add_removed_sentencepiece_call()
    assert Processor().SetVocabulary(["a"]) is None
    assert importlib.import_module("importlib_metadata").version("torch")
    monkeypatch.delitem(sys.modules, "importlib_metadata")
    assert all(patch.__doc__ for patch in joey.PATCHES)


@pytest.fixture
def prepared(modules, monkeypatch, tmp_path):
    """What `prepare` lays out, of a few sentences and at a small size: (config, sentences)."""
    for part, name in (("train", "train"), ("val", "valid")):
        for lang in ("ko", "en"):
            lines = (ROOT / "data" / "demo" / f"{name}.{lang}").read_text(encoding="utf-8")
            text = "\n".join(lines.split("\n")[:300]) + "\n"
            (tmp_path / f"{part}.{lang}").write_text(text, encoding="utf-8")
    small = {**modules[""].SIZE, "embed_dim": 6, "hidden_dim": 8}
    monkeypatch.setattr(modules[""], "SIZE", small)
    monkeypatch.setattr(modules[""], "VOCAB_SIZE", 400)
    (tmp_path / "work").mkdir()
    return modules[""].prepare(tmp_path, tmp_path / "work", "ko", "en", 200)


def test_both_sides_build_the_same_sizes(modules, prepared):
    config, sentences = prepared
    job = {
        "size": modules[""].SIZE,
        "tokenizer": "shared.model",
        "text": {"train": "train", "val": "val"},
        "src_lang": "ko",
        "tgt_lang": "en",
        "beam": 5,
        "train_sentences": sentences,
    }
    theirs = modules["_joey"].configuration(job, Path("folder"))
    tokenizers = load_tokenizers(config, Path(config.run_dir) / "tokenizer")
    model = build_model(config, len(tokenizers.src), len(tokenizers.tgt))
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert ours == joeynmt_size(theirs["model"], 400) + 400 - 8  # biases, see the docstring
    assert (theirs["training"]["clip_grad_norm"], config.training.clip_norm) == (1.0, 1.0)
    assert theirs["training"]["label_smoothing"] == config.training.label_smoothing
    assert theirs["model"]["encoder"]["dropout"] == config.model.dropout
    assert 5 <= sentences <= 40  # of 200 tokens


def joeynmt_size(model, vocab_size):
    """Parameters of JoeyNMT's recurrent model, counted from its layers; attention has none."""
    embed = model["encoder"]["embeddings"]["embedding_dim"]
    hidden, encoder = model["decoder"]["hidden_size"], model["encoder"]["hidden_size"]

    def gru(inputs, size):
        return 3 * size * (inputs + size + 2)

    memory = 2 * encoder
    return (
        2 * vocab_size * embed
        + 2 * gru(embed, encoder)
        + gru(embed + hidden, hidden)
        + hidden * (memory + 1)  # bridge
        + hidden * (hidden + memory + 1)  # attentional vector
        + hidden * (memory + hidden + 1)  # key, query and energy layers, without bias
        + vocab_size * hidden  # output, without bias
    )


@pytest.fixture
def job(prepared):
    config, _ = prepared
    return {
        "run_dir": config.run_dir,
        "valid": config.data.valid.src,
        "threads": 1,
        "warm_up": 1,
        "beam": 2,
        "length": 4,
        "batch": 8,
        "decode_batches": 2,
        "precision": "fp32",
        "trains": True,
        "shortlist": False,
    }


def test_our_search_is_forced_to_the_length_and_takes_all_sentences_at_once(modules, prepared, job):
    modules["_nmt"].prepare(prepared[0])
    translator = load(job["run_dir"], device="cpu")
    with torch.no_grad():  # a model that would rather end at once
        translator.model.decoder.output_layer.bias[EOS_ID] = 50.0
    search = modules["_nmt"].Search(translator, job)
    assert search() == 2 * 8 * 4
    assert len(search.sentences) == 2 * 8
    assert translator.options.beam_size == 2


def test_our_side_trains_and_decodes_when_told(modules, job, tmp_path):
    ours = modules["_figures"].System(
        "nmt", "fp32", sys.executable, "compare_joeynmt_nmt.py", ("train", "decode")
    )
    began = time.perf_counter()
    child = modules[""].Child(ours, job, tmp_path / "log")
    train, decode = child.run("train", 0.01), child.run("decode", 0.0)
    child.close()
    assert 0 <= ours.about["padding"] < 0.2
    assert ours.about["threads"] == 1
    assert 0 < train.tokens <= 200 * train.steps
    assert decode.tokens == 2 * 8 * 4  # sentences x forced length, </s> not counted
    assert train.seconds + decode.seconds < time.perf_counter() - began


def test_our_side_decodes_with_the_shortlist_of_its_text(modules, job, tmp_path):
    ours = modules["_figures"].System(
        "nmt", "int8", sys.executable, "compare_joeynmt_nmt.py", ("decode",), shortlist=True
    )
    assert modules["_nmt"].shortlist(job) is None
    job |= {"precision": "int8", "trains": False, "shortlist": True}
    child = modules[""].Child(ours, job, tmp_path / "log")
    assert child.run("decode", 0.0).tokens == 2 * 8 * 4
    child.close()
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "shortlist.npz: " in log  # what `nmt shortlist` says

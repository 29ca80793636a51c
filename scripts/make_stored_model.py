"""Store two tiny models, and what they translate to, for the tests of all later versions.

    python scripts/make_stored_model.py [--out tests/stored_models]

Trains on short sentences of the demo corpus and writes OUT/VERSION/MODEL, where VERSION is that of
this nmt. `gru-bahdanau` is a run directory, `lstm-luong` a model in one folder, both as they are
published: without training state. In each, `expected.jsonl` has an object per source sentence:
`src`, the best hypotheses `beam` and `greedy`, and the `attention` of the former.

What a version has written is never written anew: the script refuses.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import nmt
from nmt.build.model import build_model
from nmt.build.saved import build_translator, find_model, load_weights, search_options
from nmt.build.training import build_device
from nmt.data.corpus import Pair, read_pairs
from nmt.text.lines import json_line
from nmt.training.checkpoint import MANIFEST, STATE, pointed
from nmt.translator import Translator

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data" / "demo"
MAX_WORDS = 7  # English words of a sentence that is trained on
NUM_WORDS = 200  # Korean words, the most frequent ones; a sentence with another is left out
BEAM_SIZE = 5
NUM_ORDINARY = 8  # sentences of the demo's test set
DIGITS = 5
SHAKEN, NUM_SHAKEN = 1e-4, 3  # relative change of weights, about 1000 times the rounding of fp32

COMMON = """\
src_lang: ko
tgt_lang: en
data:
  train: {src: train.ko, tgt: train.en}
  valid: {src: valid.ko, tgt: valid.en}
  max_length: 24
training:
  device: cpu
  max_steps: 1500
  batch_tokens: 256
  learning_rate: 1e-2
  schedule: linear
  warmup_steps: 100
  label_smoothing: 0
validation: {every: 250, metric: loss, beam_size: 1}
"""
MODELS = {
    "gru-bahdanau": """\
tokenizer: {kind: unigram, vocab_size: 260, shared: true}
model:
  cell: gru
  embed_dim: 24
  encoder: {hidden_dim: 24}
  decoder: {order: bahdanau, hidden_dim: 32}
  attention: {score: additive, key_dim: 24}
  tie_embeddings: all
  dropout: 0
""",
    "lstm-luong": """\
tokenizer: {kind: bpe, vocab_size: 240, shared: false}
model:
  cell: lstm
  embed_dim: 24
  encoder: {num_layers: 2, hidden_dim: 16}
  decoder: {order: luong, num_layers: 2, hidden_dim: 32, input_feeding: true}
  attention: {score: general}
  dropout: 0
""",
}


def unusual_sentences(ordinary: list[str]) -> list[str]:
    """Blank ones, unknown characters, what normalisation changes, and one that is split."""
    return [
        "",
        " \u3000\t",
        "日本語 나는 밥을 먹었다",
        "그녀는 日本語 노래했다 😀",
        "<s> 나는 <unk> 밥을 & 먹었다 </s>",
        "\u2028나는\u3000밥을  먹었다",
        "Ｙuna는 Rice를 먹었다",  # in the shared vocabulary, capital letters too
        " ".join(ordinary[:4]),
    ]


def run_nmt(*arguments: str, folder: Path, sentences: list[str] | None = None) -> str:
    """What a command of nmt writes; it must succeed."""
    text = "".join(f"{sentence}\n" for sentence in sentences or [])
    ended = subprocess.run(
        [sys.executable, "-m", "nmt", *arguments],
        cwd=folder,
        input=text.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return ended.stdout.decode()


def objects(jsonl: str) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in jsonl.split("\n")[:-1]]


def short_pairs(part: str) -> list[Pair]:
    """The short sentence pairs of a part of the demo corpus."""
    pairs = read_pairs(str(DEMO / f"{part}.ko"), str(DEMO / f"{part}.en"))
    return [pair for pair in pairs if len(pair.tgt.split()) <= MAX_WORDS]


def draw_corpus() -> dict[str, list[Pair]]:
    """The short pairs of frequent words: as little as a model of some thousand weights learns."""
    corpus = {part: short_pairs(part) for part in ("train", "valid", "test")}
    counts = Counter(word for pair in corpus["train"] for word in pair.src.split())
    frequent = {word for word, _ in counts.most_common(NUM_WORDS)}
    return {
        part: [pair for pair in pairs if frequent.issuperset(pair.src.split())]
        for part, pairs in corpus.items()
    }


def write_corpus(corpus: dict[str, list[Pair]], folder: Path) -> None:
    """Write what is trained and validated on."""
    for part in ("train", "valid"):
        for suffix, side in (("ko", "src"), ("en", "tgt")):
            text = "".join(f"{getattr(pair, side)}\n" for pair in corpus[part])
            (folder / f"{part}.{suffix}").write_text(text, encoding="utf-8")


def publish(run: Path, model: Path, *, in_one_folder: bool) -> None:
    """Copy what translates of a run: config, tokenizer, weights and manifest."""
    best = pointed(run / "best")
    assert best is not None
    home = model if in_one_folder else model / "checkpoints" / best.name
    shutil.copytree(best, home, ignore=shutil.ignore_patterns(STATE))
    manifest = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
    del manifest["files"][STATE]
    (home / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    shutil.copytree(run / "tokenizer", model / "tokenizer")
    shutil.copy(run / "config.yaml", model)
    if not in_one_folder:
        shutil.copy(run / "best", model)


def shaken(model: Path, beam_size: int, seed: int | None) -> Translator:
    """A translator all of whose weights are changed a little, at random; None: as they are."""
    saved = find_model(model)
    network = build_model(saved.config, len(saved.tokenizers.src), len(saved.tokenizers.tgt))
    load_weights(network, saved.checkpoint)
    if seed is not None:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + SHAKEN * torch.randn(weight.shape, generator=random))
    options = search_options(saved.config, beam_size=beam_size)
    return build_translator(
        saved.config, network, saved.tokenizers, build_device("cpu"), options=options
    )


def is_stable(model: Path, sentences: list[str]) -> list[bool]:
    """Of each sentence, whether its translation does not hang on rounding.

    Other processors round otherwise: weights changed far more than that must give the same tokens.
    """
    stable = [True] * len(sentences)
    for beam_size in (1, BEAM_SIZE):
        expected = shaken(model, beam_size, None).translate(sentences)
        for seed in range(NUM_SHAKEN):
            found = shaken(model, beam_size, seed).translate(sentences)
            for i in range(len(sentences)):
                stable[i] = stable[i] and found[i].tokens == expected[i].tokens
    return stable


def expected_of(model: Path, candidates: list[str]) -> list[dict[str, Any]]:
    """What the model makes of unusual sentences, and of some of the candidates."""
    unusual = unusual_sentences(candidates)
    kept = [s for s, good in zip(unusual, is_stable(model, unusual), strict=True) if good]
    for sentence in unusual:
        if sentence not in kept:
            print(f"left out, because its translation hangs on rounding: {sentence!r}")
    ordinary = zip(candidates, is_stable(model, candidates), strict=True)
    kept += [sentence for sentence, good in ordinary if good][:NUM_ORDINARY]
    searched = {}
    on_cpu = ("--model", str(model), "--device", "cpu")
    for name, beam_size in (("beam", BEAM_SIZE), ("greedy", 1)):
        translate = ("translate", *on_cpu, "--format", "jsonl", "--beam-size", str(beam_size))
        searched[name] = objects(run_nmt(*translate, folder=model, sentences=kept))
    dump = ("attn-dump", *on_cpu, "--beam-size", str(BEAM_SIZE), "--src", "-")
    attention = objects(run_nmt(*dump, folder=model, sentences=kept))
    return [
        {
            "src": sentence,
            "beam": searched["beam"][i]["hypotheses"][0],
            "greedy": searched["greedy"][i]["hypotheses"][0],
            "attention": {
                name: attention[i][name] for name in ("src_tokens", "tgt_tokens", "weights")
            },
        }
        for i, sentence in enumerate(kept)
    ]


def rounded(value: Any) -> Any:
    """The value with fewer digits wherever it holds a number."""
    match value:
        case float():
            return round(value, DIGITS)
        case list():
            return [rounded(item) for item in value]
        case dict():
            return {name: rounded(item) for name, item in value.items()}
        case _:
            return value


def main() -> None:
    """Train, publish, translate; nothing is stored before all of it is done."""
    parser = argparse.ArgumentParser(description="Store two tiny models for the tests.")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "stored_models")
    target = parser.parse_args().out / nmt.__version__
    if target.exists():
        raise SystemExit(
            f"{target}: is there already, and what a version has stored must stay as it is; raise "
            "the version first"
        )
    with tempfile.TemporaryDirectory(prefix="nmt-stored-") as work:
        folder = Path(work)
        corpus = draw_corpus()
        write_corpus(corpus, folder)
        for name, config in MODELS.items():
            text = f"run_dir: {name}\n{COMMON}{config}"
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
            run_nmt("train", "--config", f"{name}.yaml", folder=folder)
            model = folder / "stored" / name
            publish(folder / name, model, in_one_folder=name == "lstm-luong")
            expected = expected_of(model, [pair.src for pair in corpus["test"]])
            lines = "".join(f"{json_line(rounded(entry))}\n" for entry in expected)
            (model / "expected.jsonl").write_text(lines, encoding="utf-8")
            for entry in expected:
                print(f"{name}: {entry['src']!r} -> {entry['beam']['text']!r}")
        shutil.copytree(folder / "stored", target)


if __name__ == "__main__":
    main()

"""JoeyNMT's side of `compare_joeynmt.py`, which starts it with the Python of JoeyNMT's environment.

Everything timed is JoeyNMT's own: `TrainManager.train_and_validate` with its data loader, and
`joeynmt.search.search`. JoeyNMT 2.3.0 does not start with today's packages; `PATCHES` mends that
in this process only, and none of it runs while time is taken.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from compare_joeynmt_child import Meter, open_channel, restrict_to


def add_missing_dependency() -> None:
    """`joeynmt.helpers` imports importlib_metadata, which its package does not ask for.

    The standard library has had the same module since Python 3.8.
    """
    sys.modules.setdefault("importlib_metadata", importlib.metadata)


def add_removed_sentencepiece_call() -> None:
    """`SentencePieceTokenizer.set_vocab` calls SetVocabulary, which sentencepiece has removed.

    It limited the pieces to a vocabulary. Here the vocabulary is all pieces: nothing to limit.
    """
    processor: Any = sentencepiece.SentencePieceProcessor
    if not hasattr(processor, "SetVocabulary"):
        processor.SetVocabulary = lambda self, vocabulary: None


def drop_removed_scheduler_argument() -> None:
    """`build_scheduler` gives ReduceLROnPlateau verbose=False, an argument torch has removed."""
    from joeynmt import builders  # type: ignore[import-not-found]

    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    builders.ReduceLROnPlateau = lambda *given, verbose=False, **named: plateau(*given, **named)


PATCHES = (
    add_missing_dependency,
    add_removed_sentencepiece_call,
    drop_removed_scheduler_argument,
)


def configuration(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a JoeyNMT YAML file would say: its recurrent model at the size of the comparison."""
    size, pieces = job["size"], {"model_file": str(job["tokenizer"]), "model_type": "unigram"}

    def side(lang: str) -> dict[str, Any]:
        return {
            "lang": lang,
            "level": "bpe",
            "voc_file": str(folder / "vocabulary.txt"),
            "tokenizer_type": "sentencepiece",
            "tokenizer_cfg": dict(pieces),
        }

    embeddings = {"embedding_dim": size["embed_dim"], "scale": False, "dropout": size["dropout"]}
    recurrent = {
        "type": "recurrent",
        "rnn_type": "gru",
        "num_layers": 1,
        "hidden_size": size["hidden_dim"],
        "embeddings": embeddings,
        "dropout": size["dropout"],
    }
    decoder = {
        **recurrent,
        "input_feeding": True,
        "init_hidden": "bridge",
        "attention": "bahdanau",
        "hidden_dropout": size["dropout"],
    }
    return {
        "name": "comparison",
        "model_dir": str(folder / "model"),
        "use_cuda": False,
        "random_seed": 1,
        "data": {
            "train": job["text"]["train"],
            "dev": job["text"]["val"],
            "dataset_type": "plain",
            "src": side(job["src_lang"]),
            "trg": side(job["tgt_lang"]),
        },
        "testing": {"beam_size": job["beam"], "beam_alpha": 1.0},
        "training": {
            "optimizer": "adam",
            "adam_betas": [0.9, 0.98],
            "learning_rate": size["learning_rate"],
            "learning_rate_min": 1e-9,
            "scheduling": "plateau",
            "label_smoothing": size["label_smoothing"],
            "clip_grad_norm": size["clip_norm"],
            "normalization": "tokens",
            "batch_type": "sentence",
            "batch_size": job["train_sentences"],
            "epochs": 1000,
            "validation_freq": 10**9,
            "logging_freq": 100,
        },
        "model": {
            "tied_embeddings": False,
            "tied_softmax": False,
            "encoder": {**recurrent, "bidirectional": True},
            "decoder": decoder,
        },
    }


def write_vocabulary(tokenizer: str, path: Path) -> None:
    """All pieces of the tokenizer; JoeyNMT puts its four special tokens in front itself."""
    processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    text = [pieces[i] for i in range(len(pieces)) if not processor.is_control(i)]
    path.write_text("".join(f"{piece}\n" for piece in text if piece != "<unk>"), encoding="utf-8")


def padding_share(dataset: Any, model: Any, sentences: int, num_batches: int = 50) -> float:
    """How much of the target positions is padding, in the first batches of an epoch."""
    batches = dataset.make_iter(
        batch_size=sentences, shuffle=True, pad_index=model.pad_index, eos_index=model.eos_index
    )
    real = positions = 0
    for _, batch in zip(range(num_batches), batches, strict=False):
        real += int(batch.ntokens)
        positions += batch.trg.numel()
    return 1 - real / positions


class Search:
    """Beam search of the same length for every sentence, a batch of sentences at a time."""

    def __init__(self, model: Any, dataset: Any, job: dict[str, Any]) -> None:
        batches = dataset.make_iter(
            batch_size=job["batch"], pad_index=model.pad_index, eos_index=model.eos_index
        )
        self.batches = [b for _, b in zip(range(job["decode_batches"]), batches, strict=False)]
        self.model, self.beam, self.length = model, job["beam"], job["length"]

    def __call__(self) -> int:
        """Translate all batches and count the tokens, without `</s>`."""
        from joeynmt.search import search  # type: ignore[import-not-found]

        training = self.model.training
        self.model.eval()
        total = 0
        for batch in self.batches:
            batch.sort_by_src_length()
            output, _, _ = search(
                model=self.model,
                batch=batch,
                max_output_length=self.length,
                min_output_length=self.length,
                beam_size=self.beam,
                beam_alpha=1.0,
            )
            ends = (output == self.model.pad_index) | (output == self.model.eos_index)
            total += int((~ends).sum())
        self.model.train(training)
        return total


def main(job: dict[str, Any]) -> None:
    """Obey the parent until it hangs up."""
    answers = open_channel()
    restrict_to(job["threads"])
    torch.set_num_threads(job["threads"])
    for patch in PATCHES:
        patch()
    from joeynmt.config import (  # type: ignore[import-not-found]
        parse_global_args,
        set_validation_args,
    )
    from joeynmt.prediction import prepare  # type: ignore[import-not-found]
    from joeynmt.training import TrainManager  # type: ignore[import-not-found]

    folder = Path(job["work"]) / "joeynmt"
    (folder / "model").mkdir(parents=True)
    write_vocabulary(job["tokenizer"], folder / "vocabulary.txt")
    args = parse_global_args(configuration(job, folder), rank=0, mode="train")
    model, train_data, valid_data, _ = prepare(args, rank=0, mode="train")
    trainer = TrainManager(
        rank=0,
        model=model,
        model_dir=args.model_dir,
        device=args.device,
        n_gpu=args.n_gpu,
        num_workers=args.num_workers,
        autocast=args.autocast,
        seed=args.seed,
        train_args=args.train,
        dev_args=set_validation_args(args.test),
    )
    packages = ("joeynmt", "torch", "sentencepiece")
    about = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "padding": padding_share(train_data, model, job["train_sentences"]),
        "patches": [f"{patch.__name__}: {patch.__doc__}" for patch in PATCHES],
    }
    meter = Meter(
        Search(model, valid_data, job),
        about,
        warm_up=job["warm_up"],
        commands=sys.stdin,
        answers=answers,
    )
    train_step, done = trainer._train_step, 0

    def counted_step(batch: Any) -> Any:
        """JoeyNMT's own step; when it is called the last one is complete, up to its update."""
        nonlocal done
        if done:
            meter.tick(done)
        done = int(batch.ntokens)
        return train_step(batch)

    trainer._train_step = counted_step
    trainer.train_and_validate(train_data=train_data, valid_data=valid_data)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

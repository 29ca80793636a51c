"""Config → tokenizers, token stores, batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nmt.config import Config
from nmt.data.batches import Batches, Sampler
from nmt.data.corpus import PairFilter, read_pairs
from nmt.data.store import Side, TokenStore, build_store, fingerprint
from nmt.errors import ConfigError
from nmt.text.tokenizer import Tokenizer, train_tokenizer


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizer of each side; with a shared vocabulary both are the same object."""

    src: Tokenizer
    tgt: Tokenizer

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each model file, by which a checkpoint knows its tokenizers."""
        return {"src": self.src.sha256, "tgt": self.tgt.sha256}


def build_tokenizers(config: Config, folder: Path, say: Callable[[str], None]) -> Tokenizers:
    """Read the tokenizers of a run, or train and save those that are missing.

    Raises:
        ConfigError: if the vocabulary size is impossible, or not that of a tokenizer found.
        DataError: if the training text is empty, not UTF-8 or not parallel.
    """
    files = config.data.train
    if config.tokenizer.shared:

        def both() -> Iterator[str]:
            for pair in read_pairs(files.src, files.tgt):
                yield pair.src
                yield pair.tgt

        shared = _tokenizer(
            config, folder / "shared.model", f"{files.src} with {files.tgt}", both, say
        )
        return Tokenizers(shared, shared)
    return Tokenizers(
        _tokenizer(
            config,
            folder / "src.model",
            files.src,
            lambda: (pair.src for pair in read_pairs(files.src, files.tgt)),
            say,
        ),
        _tokenizer(
            config,
            folder / "tgt.model",
            files.tgt,
            lambda: (pair.tgt for pair in read_pairs(files.src, files.tgt)),
            say,
        ),
    )


def _tokenizer(
    config: Config,
    path: Path,
    corpus: str,
    sentences: Callable[[], Iterator[str]],
    say: Callable[[str], None],
) -> Tokenizer:
    wanted = config.tokenizer
    if path.exists():
        tokenizer = Tokenizer.load(path)
        if len(tokenizer) != wanted.vocab_size and wanted.kind != "char":
            raise ConfigError(
                f"{path}: has {len(tokenizer)} pieces, but tokenizer.vocab_size is "
                f"{wanted.vocab_size}; delete the file to train it anew, or change the key"
            )
        return tokenizer
    tokenizer = train_tokenizer(
        sentences(),
        kind=wanted.kind,
        vocab_size=wanted.vocab_size,
        character_coverage=wanted.character_coverage,
        byte_fallback=wanted.byte_fallback,
        name=corpus,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    say(f"tokenizer: {wanted.kind}, {len(tokenizer):,} pieces, trained and saved as {path}")
    return tokenizer


def load_tokenizers(config: Config, folder: Path) -> Tokenizers:
    """Read the tokenizers that belong to a model.

    Raises:
        ModelError: if one is missing or damaged.
    """
    if config.tokenizer.shared:
        shared = Tokenizer.load(folder / "shared.model")
        return Tokenizers(shared, shared)
    return Tokenizers(Tokenizer.load(folder / "src.model"), Tokenizer.load(folder / "tgt.model"))


def build_token_store(
    config: Config,
    part: Literal["train", "valid"],
    tokenizers: Tokenizers,
    folder: Path,
    say: Callable[[str], None],
) -> TokenStore:
    """Open the token store of a part of the data (`train` or `valid`), or make it.

    A store is used again only if files, tokenizers and filters are what it was made of.

    Raises:
        ConfigError, DataError: if a file is missing or its content is wrong.
        TrainingError: if the disk is full.
    """
    files = config.data.train if part == "train" else config.data.valid
    with_text = part == "train" and config.tokenizer.sampling > 0
    settings = {
        "tokenizers": tokenizers.hashes,
        "max_length": config.data.max_length,
        "max_length_ratio": config.data.max_length_ratio,
        "with_text": with_text,
    }
    wanted = fingerprint([files.src, files.tgt], settings)
    if (folder / "meta.json").exists():
        store = TokenStore(folder)
        if store.fingerprint == wanted:
            return store
    store = build_store(
        folder,
        read_pairs(files.src, files.tgt),
        encode={"src": tokenizers.src.encode, "tgt": tokenizers.tgt.encode},
        vocab_size={"src": len(tokenizers.src), "tgt": len(tokenizers.tgt)},
        pair_filter=PairFilter(config.data.max_length, config.data.max_length_ratio),
        fingerprint=wanted,
        with_text=with_text,
    )
    say(f"{part} data: {store.counts}")
    return store


def build_batches(config: Config, store: TokenStore, tokenizers: Tokenizers) -> Batches:
    """The training batches, with subwords sampled if the config says so."""
    samplers: dict[Side, Sampler] | None = None
    if alpha := config.tokenizer.sampling:

        def sampler(tokenizer: Tokenizer) -> Sampler:
            return lambda sentence, seed: tokenizer.sample(sentence, alpha, seed)

        samplers = {"src": sampler(tokenizers.src), "tgt": sampler(tokenizers.tgt)}
    return Batches(store, config.training.batch_tokens, config.seed, samplers)

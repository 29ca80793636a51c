"""Config → tokenizers, token stores, batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from nmt.config import Config
from nmt.data.batches import Batches, Sampler
from nmt.data.corpus import Findings, Pair, PairFilter, read_pairs
from nmt.data.store import SIDES, Side, TokenStore, build_store, fingerprint
from nmt.errors import ConfigError
from nmt.text.tokenizer import Tokenizer, read_model_file, train_tokenizer
from nmt.training.batch_size import CPU_BATCH_TOKENS

Part = Literal["train", "valid"]


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizer of each side; with a shared vocabulary both are the same object."""

    src: Tokenizer
    tgt: Tokenizer

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each model file, by which a checkpoint knows its tokenizers."""
        return {"src": self.src.sha256, "tgt": self.tgt.sha256}


def read_part(config: Config, part: Part) -> Iterator[Pair]:
    """The pairs of a part of the data, without those that `data.encoding_errors` leaves out.

    Raises:
        ConfigError, DataError: if a file is missing or its content is wrong.
    """
    files = config.data.train if part == "train" else config.data.valid
    pairs = read_pairs(files.src, files.tgt, config.data.encoding_errors)
    return (pair for pair in pairs if pair.is_valid)


def build_tokenizers(config: Config, folder: Path, say: Callable[[str], None]) -> Tokenizers:
    """Read the tokenizers of a run, or train and save those that are missing.

    Raises:
        ConfigError: if the vocabulary size is impossible, or not that of a tokenizer found.
        DataError: if the training text is empty, not UTF-8 or not parallel.
    """
    files = config.data.train
    if config.tokenizer.shared:

        def both() -> Iterator[str]:
            for pair in read_part(config, "train"):
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
            lambda: (pair.src for pair in read_part(config, "train")),
            say,
        ),
        _tokenizer(
            config,
            folder / "tgt.model",
            files.tgt,
            lambda: (pair.tgt for pair in read_part(config, "train")),
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
        fits = len(tokenizer) == wanted.vocab_size or (
            wanted.vocab_size_mode == "at_most" and len(tokenizer) < wanted.vocab_size
        )
        if not fits and wanted.kind != "char":
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
        size_mode=wanted.vocab_size_mode,
        name=corpus,
        say=say,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    say(f"tokenizer: {wanted.kind}, {len(tokenizer):,} pieces, trained and saved as {path}")
    return tokenizer


def tokenizer_files(config: Config, folder: Path) -> dict[Side, Path]:
    """The model file of each side."""
    shared = config.tokenizer.shared
    return {side: folder / ("shared.model" if shared else f"{side}.model") for side in SIDES}


def tokenizer_hashes(config: Config, folder: Path) -> dict[str, str]:
    """SHA-256 of each model file that belongs to a model.

    Raises:
        ModelError: if one is missing.
    """
    files = tokenizer_files(config, folder)
    return {side: sha256(read_model_file(path)).hexdigest() for side, path in files.items()}


def load_tokenizers(config: Config, folder: Path) -> Tokenizers:
    """Read the tokenizers that belong to a model.

    Raises:
        ModelError: if one is missing or damaged.
    """
    files = tokenizer_files(config, folder)
    src = Tokenizer.load(files["src"])
    return Tokenizers(src, src if files["tgt"] == files["src"] else Tokenizer.load(files["tgt"]))


def data_fingerprint(config: Config, part: Part, tokenizers: Tokenizers) -> str:
    """A hash of the lines of a part of the data, and of what is done with them.

    Raises:
        ConfigError, DataError: if a file is missing or its content is wrong.
    """
    files = config.data.train if part == "train" else config.data.valid
    settings = {
        "tokenizers": tokenizers.hashes,
        "max_length": config.data.max_length,
        "max_length_ratio": config.data.max_length_ratio,
        "with_text": _with_text(config, part),
    }
    return fingerprint([files.src, files.tgt], settings, config.data.encoding_errors)


def _with_text(config: Config, part: Part) -> bool:
    """Whether the store keeps the text, because subwords are sampled from it."""
    return part == "train" and config.tokenizer.sampling > 0


def build_token_store(
    config: Config,
    part: Part,
    tokenizers: Tokenizers,
    folder: Path,
    say: Callable[[str], None],
    findings: Findings | None = None,
) -> TokenStore:
    """Open the token store of a part of the data (`train` or `valid`), or make it.

    A store is used again only if files, tokenizers and filters are what it was made of.

    Args:
        say: is told what was kept and what is odd, when the store is made.
        findings: where what is odd is counted, when the store is made.

    Raises:
        ConfigError, DataError: if a file is missing or its content is wrong.
        TrainingError: if the disk is full.
    """
    files = config.data.train if part == "train" else config.data.valid
    wanted = data_fingerprint(config, part, tokenizers)
    if (folder / "meta.json").exists():
        store = TokenStore(folder)
        if store.fingerprint == wanted:
            return store
    findings = findings or Findings()
    store = build_store(
        folder,
        read_pairs(files.src, files.tgt, config.data.encoding_errors, findings),
        encode={"src": tokenizers.src.encode, "tgt": tokenizers.tgt.encode},
        vocab_size={"src": len(tokenizers.src), "tgt": len(tokenizers.tgt)},
        pair_filter=PairFilter(config.data.max_length, config.data.max_length_ratio),
        fingerprint=wanted,
        with_text=_with_text(config, part),
        findings=findings,
    )
    say(f"{part} data: {store.counts}")
    for side, path in zip(SIDES, (files.src, files.tgt), strict=True):
        for message in getattr(findings, side).warnings(path, config.data.encoding_errors):
            say(f"warning: {message}")
    return store


def build_batches(config: Config, store: TokenStore, tokenizers: Tokenizers) -> Batches:
    """The training batches, with subwords sampled if the config says so.

    Where the config leaves their size to be found out, they are as small as it may become.
    """
    samplers: dict[Side, Sampler] | None = None
    if alpha := config.tokenizer.sampling:

        def sampler(tokenizer: Tokenizer) -> Sampler:
            return lambda sentence, seed: tokenizer.sample(sentence, alpha, seed)

        samplers = {"src": sampler(tokenizers.src), "tgt": sampler(tokenizers.tgt)}
    batch_tokens = config.training.batch_tokens
    if batch_tokens == "auto":
        batch_tokens = CPU_BATCH_TOKENS[0]
    return Batches(store, batch_tokens, config.seed, samplers)

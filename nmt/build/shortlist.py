"""The lexical shortlist of a model: learned from its training data, or read for it."""

from pathlib import Path

from nmt.build.data import Tokenizers
from nmt.data.shortlist import Shortlist, learn_shortlist
from nmt.data.store import TokenStore
from nmt.errors import ModelError
from nmt.training.checkpoint import choose_checkpoint


def model_folder(model: str | Path) -> Path:
    """The run directory of a model, or the folder of its weights if that is all there is.

    Args:
        model: a run directory, or a checkpoint.

    Raises:
        ModelError: if there is no model.
    """
    checkpoint = choose_checkpoint(Path(model))
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else checkpoint


def shortlist_path(model: str | Path) -> Path:
    """Where the shortlist of a model is, or would be.

    Raises:
        ModelError: if there is no model.
    """
    return model_folder(model) / "shortlist.npz"


def build_shortlist(
    tokenizers: Tokenizers, data: Path, *, per_token: int, frequent: int, max_pairs: int
) -> Shortlist:
    """Learn a shortlist from the token store that a model was trained on.

    Args:
        tokenizers: those of the model; if they are one, a source token may be copied.
        data: the folder of the token store.

    Raises:
        ConfigError: if a number is impossible.
        ModelError: if the store is missing or damaged.
    """
    if not data.is_dir():
        raise ModelError(
            f"{data}: is not there, but a shortlist is learned from the training data; give the "
            "run directory in which the model was trained"
        )
    store = TokenStore(data)
    store.check_ids("src", len(tokenizers.src))
    store.check_ids("tgt", len(tokenizers.tgt))
    return learn_shortlist(
        store,
        (len(tokenizers.src), len(tokenizers.tgt)),
        per_token=per_token,
        frequent=frequent,
        max_pairs=max_pairs,
        copies=tokenizers.src.sha256 == tokenizers.tgt.sha256,
        hashes=tokenizers.hashes,
    )


def load_shortlist(path: str | Path, tokenizers: Tokenizers) -> Shortlist:
    """Read the shortlist for a model with these tokenizers.

    Raises:
        ModelError: if it is missing, damaged, or belongs to other tokenizers.
    """
    shortlist = Shortlist.load(Path(path))
    if shortlist.hashes != tokenizers.hashes:
        raise ModelError(
            f"{path}: belongs to other tokenizers than the model; make it anew with `nmt shortlist`"
        )
    if not shortlist.fits(len(tokenizers.src), len(tokenizers.tgt)):
        raise ModelError(f"{path}: is damaged, or no shortlist; make it anew with `nmt shortlist`")
    return shortlist

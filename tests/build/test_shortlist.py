"""The shortlist of a model: where it is, and that it is the model's own."""

import pytest

from nmt.build.data import build_token_store, load_tokenizers
from nmt.build.shortlist import build_shortlist, load_shortlist, model_folder, shortlist_path
from nmt.errors import ModelError

NUMBERS = {"per_token": 2, "frequent": 1, "max_pairs": 100}


@pytest.fixture
def run(saved, config_of, corpus, tmp_path, monkeypatch):
    """A run with a model and its training data; gives its folder and its tokenizers."""
    saved()
    config = config_of()
    monkeypatch.chdir(corpus)
    tokenizers = load_tokenizers(config, tmp_path / "run" / "tokenizer")
    data = tmp_path / "run" / "data" / "train"
    build_token_store(config, "train", tokenizers, data, lambda message: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run", tokenizers


def test_it_is_in_the_run_directory_or_beside_lone_weights(run, tmp_path):
    home, _ = run
    checkpoint = home / "checkpoints" / "step-00000001"
    assert model_folder(home).resolve() == model_folder(checkpoint).resolve() == home
    assert shortlist_path(home).resolve() == home / "shortlist.npz"
    checkpoint.rename(tmp_path / "shared")
    assert shortlist_path(tmp_path / "shared") == tmp_path / "shared" / "shortlist.npz"
    with pytest.raises(ModelError, match="no such folder"):
        shortlist_path(tmp_path / "none")


def test_it_is_learned_saved_and_read(run):
    home, tokenizers = run
    shortlist = build_shortlist(tokenizers, home / "data" / "train", **NUMBERS)
    assert shortlist.hashes == tokenizers.hashes
    shortlist.save(home / "shortlist.npz")
    found = load_shortlist(home / "shortlist.npz", tokenizers)
    (sentence,) = tokenizers.src.encode(["der hund sieht die katze"])
    assert found.allowed(sentence).tolist() == shortlist.allowed(sentence).tolist()
    assert set(sentence) <= set(found.allowed(sentence).tolist())  # one vocabulary: may be copied


def test_that_of_another_tokenizer_is_refused(run):
    home, tokenizers = run
    shortlist = build_shortlist(tokenizers, home / "data" / "train", **NUMBERS)
    shortlist.hashes = {**shortlist.hashes, "tgt": "0" * 64}
    shortlist.save(home / "shortlist.npz")
    with pytest.raises(ModelError) as caught:
        load_shortlist(home / "shortlist.npz", tokenizers)
    assert str(caught.value) == (
        f"{home}/shortlist.npz: belongs to other tokenizers than the model; make it anew with "
        "`nmt shortlist`"
    )


def test_without_training_data_there_is_none(run, tmp_path):
    with pytest.raises(ModelError) as caught:
        build_shortlist(run[1], tmp_path / "data" / "train", **NUMBERS)
    assert str(caught.value) == (
        f"{tmp_path}/data/train: is not there, but a shortlist is learned from the training "
        "data; give the run directory in which the model was trained"
    )

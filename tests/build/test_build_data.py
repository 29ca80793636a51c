"""Tokenizers and token stores are made once, used again, and made anew when they no longer fit."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nmt.build.data import (
    build_batches,
    build_token_store,
    build_tokenizers,
    load_tokenizers,
)
from nmt.errors import ConfigError, DataError, ModelError


@pytest.fixture
def said():
    return []


@pytest.fixture
def work(corpus, tmp_path, monkeypatch, config_of):
    """A copy of the corpus that a test may change."""
    shutil.copytree(corpus, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def append(path, text):
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(text)


class TestTokenizers:
    def test_a_shared_one_is_trained_on_both_sides_and_saved(self, work, config_of, said):
        tokenizers = build_tokenizers(config_of(), Path("t"), said.append)
        assert tokenizers.src is tokenizers.tgt
        assert len(tokenizers.src) == 34
        assert os.listdir("t") == ["shared.model"]
        for sentence in ("hund katze", "dog tomcat"):
            assert 1 not in tokenizers.src.encode([sentence])[0]
        assert said == ["tokenizer: unigram, 34 pieces, trained and saved as t/shared.model"]

    def test_separate_ones_know_their_side_only(self, work, config_of, said):
        config = config_of("tokenizer.shared=false", "tokenizer.vocab_size=22")
        tokenizers = build_tokenizers(config, Path("t"), said.append)
        assert sorted(os.listdir("t")) == ["src.model", "tgt.model"]
        assert 1 not in tokenizers.src.encode(["katze"])[0]
        assert 1 in tokenizers.src.encode(["w"])[0]
        assert 1 in tokenizers.tgt.encode(["z"])[0]
        assert tokenizers.hashes == {"src": tokenizers.src.sha256, "tgt": tokenizers.tgt.sha256}
        assert len(set(tokenizers.hashes.values())) == 2

    @pytest.mark.parametrize(("shared", "size"), [("true", 34), ("false", 22)])
    def test_what_was_saved_is_used_again(self, work, config_of, said, shared, size):
        config = config_of(f"tokenizer.shared={shared}", f"tokenizer.vocab_size={size}")
        first = build_tokenizers(config, Path("t"), said.append)
        said.clear()
        Path("train.de").write_text("something else\n" * 30, encoding="utf-8")
        assert build_tokenizers(config, Path("t"), said.append).hashes == first.hashes
        assert load_tokenizers(config, Path("t")).hashes == first.hashes
        assert said == []

    def test_one_of_another_size_is_refused(self, work, config_of, said):
        build_tokenizers(config_of(), Path("t"), said.append)
        with pytest.raises(ConfigError) as caught:
            build_tokenizers(config_of("tokenizer.vocab_size=30"), Path("t"), said.append)
        assert str(caught.value) == (
            "t/shared.model: has 34 pieces, but tokenizer.vocab_size is 30; delete the file to "
            "train it anew, or change the key"
        )

    def test_characters_decide_the_size_of_their_vocabulary(self, work, config_of, said):
        config = config_of("tokenizer.kind=char", "tokenizer.vocab_size=1000")
        first = build_tokenizers(config, Path("t"), said.append)
        assert len(first.src) < 40
        assert build_tokenizers(config, Path("t"), said.append).hashes == first.hashes

    def test_an_impossible_size_leaves_nothing_behind(self, work, config_of, said):
        with pytest.raises(ConfigError, match="allows at most 36 pieces; lower it"):
            build_tokenizers(config_of("tokenizer.vocab_size=999"), Path("t"), said.append)
        assert not Path("t").exists()

    def test_unequal_files_are_found_before_training(self, work, config_of, said):
        append("train.de", "ein satz zu viel\n")
        with pytest.raises(DataError, match=r"^train\.de has 31 lines but train\.en has 30;"):
            build_tokenizers(config_of(), Path("t"), said.append)

    def test_a_missing_or_damaged_one_is_a_model_error(self, work, config_of, said):
        with pytest.raises(ModelError, match=r"^t/shared\.model: cannot be read: No such file"):
            load_tokenizers(config_of(), Path("t"))
        build_tokenizers(config_of(), Path("t"), said.append)
        Path("t/shared.model").write_bytes(b"junk")
        with pytest.raises(ModelError, match="is not a SentencePiece model, or is damaged"):
            load_tokenizers(config_of(), Path("t"))


class TestTokenStore:
    @pytest.fixture
    def build(self, work, config_of, said):
        def build(*overrides, part="train"):
            config = config_of(*overrides)
            os.chdir(work)
            tokenizers = build_tokenizers(config, Path("t"), lambda message: None)
            said.clear()
            return build_token_store(config, part, tokenizers, Path("s"), said.append), tokenizers

        return build

    def test_it_holds_the_corpus(self, build, said):
        store, tokenizers = build()
        assert len(store) == 30
        assert (
            tokenizers.src.decode(store.token_ids("src", 0).tolist()) == "der hund sieht die katze"
        )
        assert (
            tokenizers.tgt.decode(store.token_ids("tgt", 1).tolist()) == "the mouse hunts the cow"
        )
        assert said == ["train data: 30 of 30 pairs kept"]

    def test_the_validation_part_is_of_the_validation_files(self, build, said):
        store, _ = build(part="valid")
        assert len(store) == 3
        assert said == ["valid data: 3 of 3 pairs kept"]

    def test_the_same_is_used_again(self, build, said):
        first, _ = build()
        inode = os.stat("s/meta.json").st_ino
        second, _ = build()
        assert said == []
        assert os.stat("s/meta.json").st_ino == inode
        assert second.fingerprint == first.fingerprint

    @pytest.mark.parametrize(
        "override",
        ["data.max_length=20", "data.max_length_ratio=3.0", "tokenizer.sampling=0.1"],
    )
    def test_another_filter_or_sampling_makes_it_anew(self, build, said, override):
        first, _ = build()
        second, _ = build(override)
        assert second.fingerprint != first.fingerprint
        assert said

    def test_other_text_makes_it_anew(self, build, said):
        build()
        append("train.de", "der hund\n")
        append("train.en", "the dog\n")
        store, _ = build()
        assert len(store) == 31
        assert said == ["train data: 31 of 31 pairs kept"]

    def test_another_tokenizer_makes_it_anew(self, build, said):
        first, _ = build()
        os.remove("t/shared.model")
        second, _ = build("tokenizer.vocab_size=30")
        assert second.fingerprint != first.fingerprint

    def test_settings_that_change_no_token_do_not(self, build, said):
        build()
        build("training.batch_tokens=7", "seed=5", "model.dropout=0.0")
        assert said == []

    def test_filters_are_those_of_the_config(self, build, said):
        append("train.de", "der " * 200 + "\nder\nhund\n")
        append("train.en", "the\nthe dog sees the cat\n\n")
        build("data.max_length=50", "data.max_length_ratio=9.0")
        assert said == [
            "train data: 30 of 33 pairs kept; dropped 1 with an empty target (first at line 33), "
            "1 too long (first at line 31), 1 of too unequal lengths (first at line 32)"
        ]

    def test_text_is_kept_for_sampling_only(self, build):
        store, _ = build("tokenizer.sampling=0.1")
        assert store.text("src", 2) == "der hund jagt den kater"
        build("tokenizer.sampling=0.1", part="valid")
        assert not Path("s/src_text.bin").exists()


class TestBatches:
    @pytest.fixture
    def batches_of(self, work, config_of):
        def build(*overrides):
            config = config_of(*overrides)
            os.chdir(work)
            tokenizers = build_tokenizers(config, Path("t"), lambda message: None)
            store = build_token_store(config, "train", tokenizers, Path("s"), lambda message: None)
            return build_batches(config, store, tokenizers), tokenizers

        return build

    def test_without_sampling_every_epoch_has_the_same_tokens(self, batches_of):
        batches, _ = batches_of()
        assert sum(batch.num_tokens for batch in batches.epoch(0)) == sum(
            batch.num_tokens for batch in batches.epoch(1)
        )

    def test_sampling_draws_other_segmentations_of_the_same_text(self, batches_of):
        batches, tokenizers = batches_of(
            "tokenizer.sampling=0.05", "tokenizer.shared=false", "tokenizer.vocab_size=22"
        )
        rows = {"src": set(), "tgt": set()}
        for epoch in range(20):
            batch = batches.batch(np.array([0]), epoch)
            rows["src"].add(tuple(batch.src[0, :-1].tolist()))
            rows["tgt"].add(tuple(batch.tgt_output[0, :-1].tolist()))
        assert len(rows["src"]) > 1
        assert len(rows["tgt"]) > 1
        assert {tokenizers.src.decode(ids) for ids in rows["src"]} == {"der hund sieht die katze"}
        assert {tokenizers.tgt.decode(ids) for ids in rows["tgt"]} == {"the dog sees the cat"}

    def test_an_epoch_draws_the_same_each_time(self, batches_of):
        batches, _ = batches_of("tokenizer.sampling=0.1")
        first, second = list(batches.epoch(3)), list(batches.epoch(3))
        assert all(bool((a.src == b.src).all()) for a, b in zip(first, second, strict=True))

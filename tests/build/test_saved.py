"""Finding and loading a trained model; what does not belong together is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nmt
from nmt.build.data import build_tokenizers
from nmt.build.saved import find_model, load, load_weights, search_options
from nmt.errors import ConfigError, ModelError
from nmt.training.checkpoint import point, write_checkpoint
from nmt.translator import Translator


def message_of(path, **options):
    with pytest.raises(ModelError) as caught:
        load(path, device="cpu", **options)
    return str(caught.value)


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def same_weights(translator, model):
    return all(
        torch.equal(a, b)
        for a, b in zip(translator.model.parameters(), model.parameters(), strict=True)
    )


class TestFinding:
    def test_a_run_directory_is_its_best_checkpoint(self, saved, tmp_path):
        saved(step=1)
        saved(step=2)
        assert find_model(tmp_path / "run").checkpoint.name == "step-00000002"
        point(tmp_path / "run" / "best", Path("step-00000001"))
        assert find_model(tmp_path / "run").checkpoint.name == "step-00000001"

    @pytest.mark.parametrize(
        "where",
        ["run", "run/", "./run", "run/checkpoints/step-00000001", "run/checkpoints/step-00000001/"],
    )
    def test_a_path_may_be_written_in_many_ways(self, saved, where):
        saved(step=1)
        assert find_model(where).config.model.embed_dim == 6
        assert find_model(Path(where)).checkpoint.name == "step-00000001"

    @pytest.mark.parametrize(
        ("folder", "where"),
        [("run", "."), ("run/checkpoints", "step-00000001"), ("run/checkpoints", ".."),
         ("run/checkpoints/step-00000001", ".")],
    )  # fmt: skip
    def test_a_path_may_be_relative_to_a_folder_of_the_run(self, saved, monkeypatch, folder, where):
        saved(step=1)
        monkeypatch.chdir(folder)
        assert len(find_model(where).tokenizers.src) == 34

    def test_a_model_on_its_own_has_everything_in_one_folder(self, saved, tmp_path):
        saved(step=1)
        shutil.copytree("run/checkpoints/step-00000001", "model")
        for name in ("config.yaml", "tokenizer"):
            shutil.move(f"run/{name}", f"model/{name}")
        os.remove("model/training_state.pt")
        manifest = json.loads(Path("model/manifest.json").read_text())
        del manifest["files"]["training_state.pt"]
        manifest.pop("manifest_sha256", None)  # an edited manifest has no checksum of its own
        Path("model/manifest.json").write_text(json.dumps(manifest))
        assert find_model("model").checkpoint == Path("model")

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("empty", "holds no checkpoint of nmt"),
            ("missing", "no such folder"),
            ("file", "no such folder"),
        ],
    )
    def test_where_there_is_no_model_the_message_says_so(self, tmp_path, name, hint):
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        assert message_of(tmp_path / name) == (
            f"{tmp_path / name}: {hint}; give a run directory or one of its checkpoints"
        )

    def test_a_run_without_its_config_is_refused(self, saved):
        saved()
        os.remove("run/config.yaml")
        assert message_of("run").endswith(
            "run/config.yaml: cannot be read: No such file or directory"
        )

    def test_a_run_with_a_damaged_config_is_refused(self, saved):
        saved()
        edit(Path("run/config.yaml"), "embed_dim", "embed_dimm")
        assert "unknown key 'model.embed_dimm'; did you mean 'embed_dim'?" in message_of("run")

    def test_a_run_without_its_tokenizer_is_refused(self, saved):
        saved()
        shutil.rmtree("run/tokenizer")
        assert message_of("run").endswith(
            "run/tokenizer/shared.model: cannot be read: No such file or directory"
        )

    def test_a_tokenizer_of_the_same_size_that_was_swapped_is_refused(
        self, saved, config_of, corpus, monkeypatch, tmp_path
    ):
        """The sizes fit, but the pieces mean something else: fluent nonsense."""
        saved()
        monkeypatch.chdir(corpus)
        config = config_of("tokenizer.kind=bpe")
        other = build_tokenizers(config, tmp_path / "other", lambda message: None)
        assert len(other.src) == 34
        monkeypatch.chdir(tmp_path)
        shutil.copy("other/shared.model", "run/tokenizer/shared.model")
        assert message_of("run").endswith(
            "run/tokenizer: is not the tokenizer that step-00000001 was trained with; restore the "
            "one that was"
        )

    def test_a_damaged_checkpoint_is_refused(self, saved):
        saved()
        os.truncate("run/checkpoints/step-00000001/model.safetensors", 50)
        assert "model.safetensors: is damaged (its checksum is not that of" in message_of("run")


class TestWeights:
    def test_they_come_back_bit_for_bit(self, saved):
        model = saved(seed=5)
        assert same_weights(load("run", device="cpu"), model)

    @pytest.mark.parametrize("ties", ["decoder", "all"])
    def test_tied_ones_come_back_tied(self, saved, ties):
        model = saved(seed=5, overrides=(f"model.tie_embeddings={ties}",))
        translator = load("run", device="cpu")
        assert same_weights(translator, model)
        decoder = translator.model.decoder
        assert decoder.output_layer.weight is decoder.embedding.weight

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "embed_dim: 6",
                "embed_dim: 9",
                "decoder.embedding.weight has the shape (34, 6), but must have (34, 9)",
            ),
            (
                "score: additive",
                "score: general",
                "decoder.attention.score.energy_layer.weight has the shape (1, 7), but must have "
                "none",
            ),
            (
                "bidirectional: true",
                "bidirectional: false",
                "decoder.attention.score.key_layer.weight has the shape (7, 10), but must have "
                "(7, 5)",
            ),
            (
                "num_layers: 1",
                "num_layers: 2",
                "decoder.bridge.hidden_layers.1.bias has the shape of nothing, but must have (8,)",
            ),
        ],
    )
    def test_those_of_another_architecture_are_refused(self, saved, old, new, message):
        saved()
        edit(Path("run/config.yaml"), old, new)
        assert message_of("run").endswith(
            f"run/checkpoints/step-00000001: does not fit its config: {message}"
        )

    def test_a_refused_model_is_not_half_loaded(self, saved, tmp_path):
        model = saved(seed=1)
        weights = dict(model.named_parameters())
        weights["decoder.output_layer.bias"] = torch.zeros(3)
        weights["encoder.embedding.weight"] = torch.ones_like(weights["encoder.embedding.weight"])
        checkpoint = write_checkpoint(tmp_path / "run", 9, weights, {}, {})
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with pytest.raises(ModelError, match="does not fit its config"):
            load_weights(model, checkpoint)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class TestLoad:
    def test_it_gives_a_translator(self, saved):
        saved()
        translator = nmt.load("run", device="cpu")
        assert isinstance(translator, Translator)
        found = translator.translate(["der hund sieht die katze", "", "die kuh"])
        assert [translation.src for translation in found][1:] == ["", "die kuh"]
        assert found[1].text == ""
        assert all(isinstance(translation.text, str) for translation in found)
        assert found[0].score < 0
        assert found[0].tokens[-1] == "</s>"
        (attention,) = translator.attend(found[0])
        assert attention.weights.sum(1) == pytest.approx(1.0, abs=1e-5)

    def test_dropout_is_off(self, saved):
        saved()
        translator = load("run", device="cpu")
        assert not translator.model.training
        first, second = (translator.score([("der hund", "the dog")])[0] for _ in range(2))
        assert first.log_prob == second.log_prob

    def test_the_options_of_the_config_are_its_defaults(self, saved):
        saved(overrides=("decoding.beam_size=3", "decoding.min_length=2", "data.max_length=17"))
        translator = load("run", device="cpu")
        assert (translator.options.beam_size, translator.options.min_length) == (3, 2)
        assert translator.max_source_length == 17

    def test_options_can_be_given(self, saved):
        saved()
        options = load("run", device="cpu", beam_size=7, n_best=2, length_penalty=None).options
        assert (options.beam_size, options.n_best, options.length_penalty) == (7, 2, 1.0)

    def test_impossible_options_are_refused(self, saved):
        saved()
        with pytest.raises(ConfigError, match="n-best: must be between 1 and the beam size 2"):
            load("run", device="cpu", beam_size=2, n_best=3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"device": "gpu"}, "device: must be auto, cpu, cuda or cuda:N, but is gpu"),
            ({"device": "cpu", "precision": "fp16"}, "precision: fp16 needs a CUDA device"),
        ],
    )
    def test_an_impossible_device_is_found_before_the_model(self, options, message):
        with pytest.raises(ConfigError, match=message):
            load("missing", **options)

    def test_bf16_runs_on_the_cpu(self, saved):
        saved()
        translator = load("run", device="cpu", precision="bf16")
        assert translator.precision == torch.bfloat16
        assert len(translator.translate(["der hund"])) == 1


def test_search_options_that_are_none_change_nothing(config_of):
    config = config_of("decoding.beam_size=4", "decoding.length_penalty=0.5")
    assert search_options(config, beam_size=None) == search_options(config)
    assert search_options(config, beam_size=2).beam_size == 2
    assert search_options(config).length_penalty == 0.5


def test_importing_the_package_imports_no_torch():
    program = (
        "import sys, nmt\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'load' in nmt.__all__ and nmt.__version__\n"
        "import nmt.cli\n"
        "assert 'torch' not in sys.modules\n"
        "assert callable(nmt.load)\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_has_no_other_lazy_names():
    with pytest.raises(AttributeError, match="module 'nmt' has no attribute 'lod'"):
        nmt.lod  # noqa: B018

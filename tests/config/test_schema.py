"""The schema documents every key, and its rules between keys hold for Python callers too."""

import json

import pytest
from pydantic import BaseModel, ValidationError

from nmt.config import Config, json_schema
from nmt.config.load import all_keys
from nmt.config.schema import DecoderConfig, ModelConfig, TokenizerConfig, TrainingConfig


def sections(model=Config):
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def test_every_field_says_what_it_means():
    for section in sections():
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.endswith("."), f"{section.__name__}.{name}"


def test_the_json_schema_is_serialisable_and_describes_every_property():
    schema = json.loads(json.dumps(json_schema()))
    objects = [schema, *schema["$defs"].values()]
    described = [p["description"] for o in objects for p in o["properties"].values()]
    assert all(described)
    assert len(described) == sum(len(section.model_fields) for section in set(sections()))
    assert all(o["additionalProperties"] is False for o in objects)
    assert schema["required"] == ["run_dir", "src_lang", "tgt_lang", "data"]


def test_only_what_has_no_sensible_default_is_required():
    required = {
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if field.is_required()
    }
    assert required == {
        "Config.run_dir",
        "Config.src_lang",
        "Config.tgt_lang",
        "Config.data",
        "DataConfig.train",
        "DataConfig.valid",
        "PairConfig.src",
        "PairConfig.tgt",
    }


def test_all_keys_lists_sections_before_their_keys():
    keys = list(all_keys())
    assert keys[:4] == ["run_dir", "seed", "src_lang", "tgt_lang"]
    assert keys.index("model") < keys.index("model.encoder") < keys.index("model.encoder.kind")
    assert len(keys) == len(set(keys))


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        TrainingConfig().max_steps = 3


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: TokenizerConfig(kind="char", sampling=0.1), "needs tokenizer.kind"),
        (lambda: DecoderConfig(input_feeding=True), "needs model.decoder.order luong"),
        (
            lambda: ModelConfig(tie_embeddings="decoder", decoder=DecoderConfig(readout_dim=3)),
            "must be model.embed_dim",
        ),
        (lambda: TrainingConfig(max_steps=5, warmup_steps=5), "must be < training.max_steps"),
    ],
)
def test_rules_hold_for_python_callers(build, text):
    with pytest.raises(ValidationError, match=text):
        build()

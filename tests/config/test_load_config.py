"""Loading reports every problem at once, each with its place, the rule, and what to do."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmt.config import Config, load_config
from nmt.errors import ConfigError

MODEL_KEYS = "cell, embed_dim, encoder, decoder, attention, tie_embeddings, dropout"


def test_defaults_fill_what_the_file_leaves_out(base, load):
    config = load(base)
    assert config.run_dir == "runs/x"
    assert config.data.train.src == "train.de"
    assert (config.seed, config.training.learning_rate, config.decoding.beam_size) == (1, 5e-4, 5)


def test_values_of_the_file_win_over_defaults(base, load):
    config = load(base + "training: {learning_rate: 1e-3}\nmodel: {attention: {score: none}}")
    assert config.training.learning_rate == 0.001
    assert config.model.attention.score == "none"


def test_norwegian_is_a_language(base, load):
    assert load(base.replace("src_lang: de", "src_lang: no")).src_lang == "no"


def test_a_whole_number_serves_as_a_number(base, load):
    penalty = load(base + "decoding: {length_penalty: 1}").decoding.length_penalty
    assert type(penalty) is float


def test_a_byte_order_mark_is_allowed(base, load):
    assert load(b"\xef\xbb\xbf" + base.encode()) == load(base)


def test_windows_line_ends_are_allowed(base, load):
    assert load(base.replace("\n", "\r\n")) == load(base)


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(problems):
    text = """\
run_dir: 5
seed: 010
data:
  train: {src: a}
  valid: {src: a,
          tgt: b, tgt: c}
model:
  hiden_dim: 5
  cell: gur
  decoder: {input_feeding: true}
  encoder:
tokenizer: {shared: no}
training:
  schedule: inverse_sqrt
  learning_rate: 1e-x
  max_steps: 5.0
"""
    assert problems(text, "decoding.beam_size=0", "model.dropout=1") == [
        "x.yaml: missing key 'src_lang'; it has no default, so set it",
        "x.yaml: missing key 'tgt_lang'; it has no default, so set it",
        "x.yaml:1: run_dir must be text, but is 5; put it in quotes",
        "x.yaml:2: seed must be a whole number, but is '010'; "
        "write it without quotes, leading zeros or underscores",
        "x.yaml:4: missing key 'data.train.tgt'; it has no default, so set it",
        "x.yaml:6: duplicate key 'data.valid.tgt', first set on line 6; remove one",
        "x.yaml:8: unknown key 'model.hiden_dim'; "
        "did you mean 'model.encoder.hidden_dim' or 'model.decoder.hidden_dim'?",
        "x.yaml:9: model.cell must be 'gru' or 'lstm', but is 'gur'",
        "x.yaml:10: model.decoder.input_feeding needs model.decoder.order luong, but it is "
        "bahdanau, where the context already enters the next step; set input_feeding to false",
        "x.yaml:11: model.encoder must be a section of keys, but is empty; "
        "indent its keys below it",
        "x.yaml:12: tokenizer.shared must be true or false, but is 'no'",
        "x.yaml:14: training.schedule inverse_sqrt needs training.warmup_steps >= 1, but it is 0; "
        "set it, e.g. to 4000",
        "x.yaml:15: training.learning_rate must be a number, but is '1e-x'",
        "x.yaml:16: training.max_steps must be a whole number, but is 5.0",
        "--set decoding.beam_size=0: decoding.beam_size must be >= 1, but is 0",
        "--set model.dropout=1: model.dropout must be < 1, but is 1",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sed: 1", "unknown key 'sed'; did you mean 'seed'?"),
        (
            "training: {learning_rat: 1}",
            "unknown key 'training.learning_rat'; did you mean 'learning_rate'?",
        ),
        ("learning_rate: 1", "unknown key 'learning_rate'; did you mean 'training.learning_rate'?"),
        ("learnin_rate: 1", "unknown key 'learnin_rate'; did you mean 'training.learning_rate'?"),
        (
            "model: {xyz: 1}",
            f"unknown key 'model.xyz'; the keys here are {MODEL_KEYS}",
        ),
        (
            "training.max_steps: 1",
            "unknown key 'training.max_steps'; in the file, a key with dots is written as "
            "sections, one indented below the other",
        ),
        (
            '"a\\nb": 1',
            r"unknown key 'a\nb'; the keys here are run_dir, seed, src_lang, tgt_lang, data, "
            "tokenizer, model, training, validation, decoding",
        ),
    ],
)
def test_an_unknown_key_gets_the_nearest_one(base, problems, line, message):
    assert problems(f"{base}{line}\n") == [f"x.yaml:7: {message}"]


def test_an_unknown_key_hides_no_rule_between_other_keys(base, problems):
    found = problems(base + "training: {warmup: 3, max_steps: 5, warmup_steps: 5}")
    assert len(found) == 2


def test_missing_sections_have_no_line(problems):
    assert problems("run_dir: x\nsrc_lang: a\ntgt_lang: b") == [
        "x.yaml: missing key 'data'; it has no default, so set it"
    ]
    assert problems("run_dir: x\nsrc_lang: a\ntgt_lang: b\ndata:\n  valid: {src: a, tgt: b}") == [
        "x.yaml:4: missing key 'data.train'; it has no default, so set it"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.yaml: is empty; write at least run_dir, src_lang, tgt_lang and data"),
        ("# a\n", "x.yaml: is empty; write at least run_dir, src_lang, tgt_lang and data"),
        (
            "# a\n- b\n",
            "x.yaml:2: must be a mapping of keys to values, but is a list; write key: value lines",
        ),
        (
            "hello",
            "x.yaml:1: must be a mapping of keys to values, but is 'hello'; write key: value lines",
        ),
        (b"a: 1\nb: \xff\n", "x.yaml:2: is not valid UTF-8; save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "x.yaml:1: is not valid UTF-8; save the file as UTF-8"),
        ("a: 1\nb: [", "x.yaml:2: is not valid YAML: while parsing a flow node, expected the node"),
        ("a: !!int 1", "x.yaml:1: the tag 'tag:yaml.org,2002:int' is refused; write a plain value"),
    ],
)
def test_an_unreadable_file_is_one_line(problems, content, message):
    (found,) = problems(content)
    assert found.startswith(message)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(f"{tmp_path}/none.yaml")
    assert str(caught.value) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


LINES = """\
run_dir: x
src_lang: de
tgt_lang: en
data:
  train: {src: a, tgt: b}
  valid: {src: c, tgt: d}
training:
  max_steps: 5
model: {cell: lstm}
  {
model: &a
- x
x: *a
decoding: {beam_size: 1e400}
"\\ud800": 1
  \t
tokenizer: [1]
seed: 3
é: ~
"""


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text() | st.lists(st.sampled_from(LINES.split("\n"))).map("\n".join),
    override=st.text() | st.just("seed=3"),
)
def test_any_text_is_a_config_or_a_config_error(load, text, override):
    try:
        found = load(text.encode("utf-8", "surrogatepass"), override)
    except ConfigError as error:
        lines = str(error).split("\n")
    else:
        lines = []
        assert isinstance(found, Config)
    assert all(line.startswith(("x.yaml", "--set ")) for line in lines)

"""The schema of the experiment file, and the only home of defaults.

A rule between keys stands on the last of them in the order of the file, because pydantic checks
the fields of a section in that order and hands each check the fields before it that are valid.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(ge=1, lt=2**31)]
# Sizes beyond these are mistakes: without bounds, adding them up could overflow or never end.
Dim = Annotated[int, Field(ge=1, le=1_000_000)]
Depth = Annotated[int, Field(ge=1, le=100)]
BeamSize = Annotated[int, Field(ge=1, le=1000)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


def conflict(text: str, *keys: str) -> PydanticCustomError:
    """A broken rule that names its keys; an error message shows the line of the first one set."""
    return PydanticCustomError("conflict", "{text}", {"text": text, "keys": keys})


class Section(BaseModel):
    """A group of keys: unknown keys and values of another type are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,  # so that rules between keys also see the defaults
    )


class PairConfig(Section):
    """A parallel text: line N of one file translates line N of the other."""

    src: Text
    """File of source sentences, one per line: UTF-8 text, or the same compressed (`.gz`).
    A relative path starts where the command is run."""
    tgt: Text
    """File of target sentences, with as many lines as `src`."""


class DataConfig(Section):
    """What is trained and validated on."""

    train: PairConfig
    """The parallel text to train on. The tokenizer is trained on it too; if it is larger than 256
    MiB, on a random part of that size."""
    valid: PairConfig
    """The parallel text that decides which checkpoint is best and when to stop."""
    max_length: Positive = 100
    """Longest side of a training pair, in tokens without `</s>`, before subword sampling; longer
    pairs are dropped and counted. Also the longest piece of a source sentence that is translated
    at once: longer sentences are split."""
    max_length_ratio: Annotated[float, Field(gt=1)] | None = None
    """Drop a training pair whose longer side has more than this many times the tokens of the
    shorter; null keeps them all."""
    encoding_errors: Literal["strict", "replace", "skip"] = "strict"
    """What to do with a line that is not valid UTF-8. `strict`: stop, and name line and byte;
    `replace`: read its bad bytes as U+FFFD, and warn; `skip`: drop the pair, and count it."""


class TokenizerConfig(Section):
    """How text becomes tokens (SentencePiece). The text is first normalised by SentencePiece's
    `nmt_nfkc`, which is part of the model file."""

    kind: Literal["unigram", "bpe", "word", "char"] = "unigram"
    """Unigram language model (Kudo 2018), byte pair encoding (Sennrich et al. 2016), words between
    spaces, or characters."""
    vocab_size: Annotated[int, Field(ge=5, lt=2**31)] = 8000
    """Number of tokens per vocabulary, the special ones included."""
    vocab_size_mode: Literal["exact", "at_most"] = "exact"
    """What to do where the text allows fewer tokens than `vocab_size`. `exact`: stop, and name the
    largest possible number; `at_most`: take that number."""
    shared: bool = True
    """One joint tokenizer for both sides, or one for each. `model.tie_embeddings: all` needs it."""
    character_coverage: Annotated[float, Field(gt=0.9, le=1)] = 1.0
    """Fraction of the characters of the text that get tokens of their own; below 1 the rarest are
    unknown. 0.9995 suits Chinese and Japanese, with `byte_fallback`."""
    byte_fallback: bool = False
    """Spell unknown characters as UTF-8 bytes instead of `<unk>`. Takes 256 of `vocab_size`."""
    sampling: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Draw another segmentation of each sentence in every epoch of training. For `unigram` the
    smoothing exponent of Kudo 2018 (smaller is more random), for `bpe` the probability to drop a
    merge (Provilkov et al. 2020); 0 turns it off."""

    @field_validator("sampling")
    @classmethod
    def _sampling_needs_subwords(cls, sampling: float, info: ValidationInfo) -> float:
        kind = info.data.get("kind")
        if sampling > 0 and kind in ("word", "char"):
            raise conflict(
                f"tokenizer.sampling needs tokenizer.kind unigram or bpe, but it is {kind}; "
                "set tokenizer.sampling to 0",
                "tokenizer.sampling",
            )
        return sampling


class EncoderConfig(Section):
    """The network that reads the source."""

    kind: Literal["rnn"] = "rnn"
    """A stack of recurrent layers of `model.cell`."""
    num_layers: Depth = 1
    """Depth of the stack."""
    hidden_dim: Dim = 512
    """Size of a layer's state, per direction: a bidirectional encoder gives the decoder states of
    twice this size."""
    bidirectional: bool = True
    """Read the source from both ends in every layer."""


class DecoderConfig(Section):
    """The network that writes the target."""

    kind: Literal["rnn"] = "rnn"
    """A stack of recurrent layers of `model.cell`."""
    order: Literal["bahdanau", "luong"] = "bahdanau"
    """What attends. `bahdanau`: the state before the step, and the context enters the first layer
    (Bahdanau et al. 2015). `luong`: the state after the step, and the context only joins the
    readout (Luong et al. 2015)."""
    num_layers: Depth = 1
    """Depth of the stack. May differ from the encoder's: a bridge maps the states."""
    hidden_dim: Dim = 512
    """Size of a layer's state, and of the query."""
    input_feeding: bool = False
    """Feed the attentional vector of each step to the next one (Luong et al. 2015, section 3.3).
    Only for `order: luong`: in Bahdanau's order the context already enters the next step."""
    readout_dim: Dim | None = None
    """Size of the vector that the vocabulary layer reads. null: `model.embed_dim` if the output
    embeddings are tied, else `hidden_dim`."""

    @field_validator("input_feeding")
    @classmethod
    def _input_feeding_needs_luong(cls, input_feeding: bool, info: ValidationInfo) -> bool:
        if input_feeding and info.data.get("order") == "bahdanau":
            raise conflict(
                "model.decoder.input_feeding needs model.decoder.order luong, but it is bahdanau, "
                "where the context already enters the next step; set input_feeding to false",
                "model.decoder.input_feeding",
            )
        return input_feeding


class AttentionConfig(Section):
    """How the decoder weights the encoder's states."""

    score: Literal["additive", "dot", "scaled_dot", "general", "concat", "none"] = "additive"
    """The score function: `additive` (Bahdanau et al. 2015), `dot`, `general` and `concat` (Luong
    et al. 2015), `scaled_dot` (Vaswani et al. 2017), or `none`: no attention, the decoder sees one
    fixed vector. `dot` and `scaled_dot` project the keys if the sizes of the two sides differ."""
    key_dim: Dim = 512
    """Size of the hidden layer of `additive` and `concat`; the other scores do not read it."""


class ModelConfig(Section):
    """The network."""

    cell: Literal["gru", "lstm"] = "gru"
    """The recurrent unit of encoder and decoder."""
    embed_dim: Dim = 256
    """Size of the word embeddings of both sides."""
    encoder: EncoderConfig = EncoderConfig()
    """The source side."""
    decoder: DecoderConfig = DecoderConfig()
    """The target side."""
    attention: AttentionConfig = AttentionConfig()
    """What connects the two sides."""
    tie_embeddings: Literal["none", "decoder", "all"] = "none"
    """Share embedding matrices (Press and Wolf 2017). `decoder`: the target's input and output;
    `all`: also the source's, which needs `tokenizer.shared`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Probability to drop a unit of embeddings, encoder states, states between layers, and the
    readout, in training."""

    @field_validator("tie_embeddings")
    @classmethod
    def _ties_fix_the_readout(cls, ties: str, info: ValidationInfo) -> str:
        decoder, embed_dim = info.data.get("decoder"), info.data.get("embed_dim")
        if ties == "none" or decoder is None or embed_dim is None:
            return ties
        if decoder.readout_dim not in (None, embed_dim):
            raise conflict(
                f"model.decoder.readout_dim must be model.embed_dim ({embed_dim}) when "
                f"model.tie_embeddings is {ties}, but is {decoder.readout_dim}; leave it out",
                "model.decoder.readout_dim",
            )
        return ties


class TrainingConfig(Section):
    """How the model is trained."""

    device: Text = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: CUDA if there, else the CPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the matrix products; weights stay in fp32. `fp16` scales the loss and needs
    a CUDA device."""
    max_steps: Positive = 20000
    """Number of updates after which training ends. `schedule: linear` reaches 0 there, so it is
    then fixed for the whole run."""
    batch_tokens: Positive | Literal["auto"] = 2048
    """Target positions per batch, padding and `</s>` included. `auto`: the most that leaves a fifth
    of the memory free, up to 2048 on a CPU and 16384 on a GPU; `config.yaml` in `run_dir` then
    holds the number, and a resumed run keeps it."""
    accumulate: Positive = 1
    """Batches per update: the gradient is that of one batch as large as all of them."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The update rule; `learning_rate` and `weight_decay` are its own."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Highest learning rate, which `schedule` lowers."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the pull of all weights towards 0: decoupled from the gradient for `adamw`, an
    L2 penalty for `adam` and `sgd`."""
    schedule: Literal["constant", "inverse_sqrt", "linear", "plateau"] = "constant"
    """The learning rate after a linear warm-up over `warmup_steps`. `constant`; `inverse_sqrt`:
    falls with the square root of the step; `linear`: falls in a line to 0 at `max_steps`;
    `plateau`: is multiplied by `plateau_factor` whenever validation stops to improve."""
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Updates over which the learning rate rises from 0. Fewer than `max_steps`; at least 1 for
    `schedule: inverse_sqrt`."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What `schedule: plateau` multiplies the learning rate by."""
    plateau_patience: Positive = 2
    """Validations without improvement before `schedule: plateau` lowers the learning rate."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest L2 norm of the gradient of an update; a longer one is shortened. null: no limit."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Validate and save a running average of the weights instead of the last ones (Polyak and
    Juditsky 1992): the share of the average that each update leaves of it, e.g. 0.999. null: no
    average."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability mass that the training target spreads evenly over the vocabulary. The reported
    perplexity is without it."""
    keep_last: Annotated[int, Field(ge=2)] = 5
    """Number of newest checkpoints that are kept, besides the best one."""
    log_every: Positive = 50
    """Updates between two lines of metrics."""
    max_skipped: Positive = 20
    """Updates in a row that `precision: fp16` may skip because of overflow before the run stops."""

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]*))?", device):
            raise conflict(
                f"training.device must be auto, cpu, cuda or cuda:N, but is {device!r}; "
                "other devices are not supported",
                "training.device",
            )
        return device

    @field_validator("precision")
    @classmethod
    def _fp16_needs_cuda(cls, precision: str, info: ValidationInfo) -> str:
        if precision == "fp16" and info.data.get("device") == "cpu":
            raise conflict(
                "training.precision fp16 needs a CUDA device, but training.device is cpu; "
                "use bf16 or fp32 on the CPU",
                "training.precision",
            )
        return precision

    @field_validator("warmup_steps")
    @classmethod
    def _warmup_fits(cls, warmup_steps: int, info: ValidationInfo) -> int:
        max_steps = info.data.get("max_steps")
        if max_steps is not None and warmup_steps >= max_steps:
            raise conflict(
                f"training.warmup_steps must be < training.max_steps ({max_steps}), "
                f"but is {warmup_steps}; lower it",
                "training.warmup_steps",
                "training.max_steps",
            )
        if info.data.get("schedule") == "inverse_sqrt" and warmup_steps == 0:
            raise conflict(
                "training.schedule inverse_sqrt needs training.warmup_steps >= 1, but it is 0; "
                "set it, e.g. to 4000",
                "training.warmup_steps",
                "training.schedule",
            )
        return warmup_steps


class ValidationConfig(Section):
    """How the model is judged during training."""

    every: Positive = 500
    """Updates between two validations. A checkpoint is written at each."""
    metric: Literal["bleu", "chrf", "loss"] = "bleu"
    """What decides which checkpoint is best, when to stop, and when `schedule: plateau` lowers the
    learning rate. BLEU and chrF are those of sacreBLEU on detokenised text."""
    patience: Positive | None = 10
    """Validations without improvement before training stops; null: never."""
    beam_size: BeamSize = 5
    """Hypotheses per sentence when validating. 1 is greedy: faster, and a little lower."""


class DecodingConfig(Section):
    """How the finished model translates unless a command says otherwise."""

    beam_size: BeamSize = 5
    """Hypotheses per sentence that are searched together. 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Exponent alpha of the length normalisation (Wu et al. 2016, equation 14). 0: the plain
    log-probability, which favours short translations."""
    min_length: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Fewest tokens of a translation before `</s>`."""
    max_length_ratio: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """A translation has at most this times the tokens of its source, plus 10."""
    batch_tokens: Positive = 2048
    """Source positions that are translated together; changes the speed, not the result."""


class Config(Section):
    """One experiment: everything that `nmt train` needs to know."""

    run_dir: Text
    """Folder of the run: tokenizer, token store, checkpoints, metrics. A relative path starts
    where the command is run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Seed of initial weights, order of the data, dropout and subword sampling."""
    src_lang: Text
    """Language that is translated from, e.g. its ISO 639 code."""
    tgt_lang: Text
    """Language that is translated into."""
    data: DataConfig
    """The text."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """From text to tokens. Trained when the run starts, and part of the model from then on."""
    model: ModelConfig = ModelConfig()
    """Kinds and sizes of the layers."""
    training: TrainingConfig = TrainingConfig()
    """From first weights to trained ones."""
    validation: ValidationConfig = ValidationConfig()
    """Which weights are kept, and when training stops."""
    decoding: DecodingConfig = DecodingConfig()
    """From source to translation. Read by commands that use the model, not by training."""

    @field_validator("model")
    @classmethod
    def _full_ties_need_one_tokenizer(cls, model: ModelConfig, info: ValidationInfo) -> ModelConfig:
        tokenizer = info.data.get("tokenizer")
        if tokenizer is not None and not tokenizer.shared and model.tie_embeddings == "all":
            raise conflict(
                "model.tie_embeddings all needs tokenizer.shared true, but it is false; "
                "share the tokenizer or set tie_embeddings to decoder",
                "model.tie_embeddings",
            )
        return model

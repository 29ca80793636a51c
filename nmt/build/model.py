"""Config → the network."""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nmt.config import Config
from nmt.errors import ConfigError
from nmt.memory import machine_memory
from nmt.model.attention import (
    AdditiveScore,
    Attention,
    ConcatScore,
    DotScore,
    FixedContext,
    GeneralScore,
)
from nmt.model.decoder import BahdanauDecoder, Decoder, DecoderSizes, LuongDecoder
from nmt.model.encoder import Encoder
from nmt.model.seq2seq import Seq2Seq


def build_model(config: Config, src_vocab_size: int, tgt_vocab_size: int) -> Seq2Seq:
    """The network, freshly initialised from torch's random state.

    Raises:
        ConfigError: if the machine has not the memory for its weights.
    """
    check_memory(outline_model(config, src_vocab_size, tgt_vocab_size))
    return _network(config, src_vocab_size, tgt_vocab_size)


def outline_model(config: Config, src_vocab_size: int, tgt_vocab_size: int) -> Seq2Seq:
    """The network with shapes only, on the device `meta`: it takes no memory for weights."""
    with torch.device("meta"), _Unfilled():
        return _network(config, src_vocab_size, tgt_vocab_size)


class _Unfilled(TorchFunctionMode):
    """Draws no numbers: on `meta` there is nowhere to put them, but torch would take seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        if func in (nn.init.normal_, nn.init.uniform_):
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def check_memory(model: Seq2Seq) -> None:
    """Refuse a network whose weights alone are more than the machine has memory.

    Raises:
        ConfigError: if they are.
    """
    needed, there = sum(weight.nbytes for weight in model.parameters()), machine_memory()
    if needed > there:
        raise ConfigError(
            f"model: needs about {needed / 2**30:,.0f} GiB for the weights, but this machine has "
            f"{there / 2**30:,.1f} GiB of memory; make its layers smaller"
        )


def _network(config: Config, src_vocab_size: int, tgt_vocab_size: int) -> Seq2Seq:
    model, encoder_config, decoder_config = config.model, config.model.encoder, config.model.decoder
    tied = model.tie_embeddings
    tgt_embedding = nn.Embedding(tgt_vocab_size, model.embed_dim)
    src_embedding = (
        tgt_embedding if tied == "all" else nn.Embedding(src_vocab_size, model.embed_dim)
    )
    encoder = Encoder(
        src_embedding,
        cell=model.cell,
        hidden_dim=encoder_config.hidden_dim,
        num_layers=encoder_config.num_layers,
        bidirectional=encoder_config.bidirectional,
        dropout=model.dropout,
    )
    sizes = DecoderSizes(
        hidden_dim=decoder_config.hidden_dim,
        num_layers=decoder_config.num_layers,
        memory_dim=encoder.memory_dim,
        readout_dim=decoder_config.readout_dim
        or (decoder_config.hidden_dim if tied == "none" else model.embed_dim),
    )
    output_layer = nn.Linear(sizes.readout_dim, tgt_vocab_size)
    if tied != "none":
        output_layer.weight = tgt_embedding.weight
    attention = build_attention(config, sizes)
    decoder: Decoder
    match decoder_config.order:
        case "bahdanau":
            decoder = BahdanauDecoder(
                tgt_embedding,
                output_layer,
                attention,
                cell=model.cell,
                sizes=sizes,
                num_encoder_layers=encoder_config.num_layers,
                dropout=model.dropout,
            )
        case "luong":
            decoder = LuongDecoder(
                tgt_embedding,
                output_layer,
                attention,
                cell=model.cell,
                sizes=sizes,
                num_encoder_layers=encoder_config.num_layers,
                dropout=model.dropout,
                input_feeding=decoder_config.input_feeding,
            )
    return Seq2Seq(encoder, decoder)


def build_attention(config: Config, sizes: DecoderSizes) -> Attention | FixedContext:
    """The attention with the score function that the config names."""
    query_dim, memory_dim = sizes.hidden_dim, sizes.memory_dim
    key_dim = config.model.attention.key_dim
    match config.model.attention.score:
        case "additive":
            return Attention(AdditiveScore(query_dim, memory_dim, key_dim))
        case "concat":
            return Attention(ConcatScore(query_dim, memory_dim, key_dim))
        case "general":
            return Attention(GeneralScore(query_dim, memory_dim))
        case "dot":
            return Attention(DotScore(query_dim, memory_dim))
        case "scaled_dot":
            return Attention(DotScore(query_dim, memory_dim, scaled=True))
        case "none":
            return FixedContext()

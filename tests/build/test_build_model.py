"""Every combination of cell, order, score and ties that the config allows becomes a network."""

import itertools
import subprocess
import sys

import pytest
import torch

from nmt.build.model import build_model, outline_model
from nmt.model.attention import (
    AdditiveScore,
    ConcatScore,
    DotScore,
    FixedContext,
    GeneralScore,
)
from nmt.model.decoder import BahdanauDecoder, LuongDecoder

SRC, TGT = 11, 13
SCORES = {
    "additive": AdditiveScore,
    "concat": ConcatScore,
    "general": GeneralScore,
    "dot": DotScore,
    "scaled_dot": DotScore,
    "none": FixedContext,
}
ORDERS = {
    "bahdanau": ("model.decoder.order=bahdanau",),
    "luong": ("model.decoder.order=luong",),
    "luong fed": ("model.decoder.order=luong", "model.decoder.input_feeding=true"),
}


def build(config):
    torch.manual_seed(1)
    return build_model(config, SRC, TGT)


def run(model):
    """Two sentences through the network: logits and attention weights."""
    src = torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]])
    tgt = torch.tensor([[2, 9, 12], [2, 4, 4]])
    return model(src, src != 0, tgt)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("score", SCORES)
def test_every_score_order_and_cell_is_built(config_of, cell, order, score):
    config = config_of(f"model.cell={cell}", f"model.attention.score={score}", *ORDERS[order])
    model = build(config)
    decoder = model.decoder
    assert type(decoder) is (BahdanauDecoder if order == "bahdanau" else LuongDecoder)
    attention = decoder.attention
    assert type(attention if score == "none" else attention.score) is SCORES[score]
    assert {type(layer).__name__ for layer in model.encoder.layers} == {cell.upper()}
    assert {type(layer).__name__ for layer in decoder.rnn.cells} == {f"{cell.upper()}Cell"}
    logits, weights = run(model)
    assert logits.shape == (2, 3, TGT)
    assert weights.shape == (2, 3, 1 if score == "none" else 4)
    (logits**2).sum().backward()
    unused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unused == []


def test_scaled_dot_is_scaled_and_dot_is_not(config_of):
    def scale(score):
        return build(config_of(f"model.attention.score={score}")).decoder.attention.score.scale

    assert scale("dot") == 1.0
    assert scale("scaled_dot") == pytest.approx(8**-0.5)


def test_all_sizes_are_those_of_the_config(config_of):
    config = config_of(
        "model.encoder.num_layers=2", "model.decoder.num_layers=3", "model.decoder.readout_dim=9"
    )
    model = build(config)
    decoder = model.decoder
    assert model.encoder.embedding.weight.shape == (SRC, 6)
    assert decoder.embedding.weight.shape == (TGT, 6)
    assert [layer.input_size for layer in model.encoder.layers] == [6, 10]
    assert {layer.hidden_size for layer in model.encoder.layers} == {5}
    assert model.encoder.memory_dim == 10
    assert [cell.input_size for cell in decoder.rnn.cells] == [6 + 10, 8, 8]
    assert {cell.hidden_size for cell in decoder.rnn.cells} == {8}
    assert decoder.attention.score.query_layer.weight.shape == (7, 8)
    assert decoder.attention.score.key_layer.weight.shape == (7, 10)
    assert decoder.readout_layer.weight.shape == (9, 8 + 10 + 6)
    assert decoder.output_layer.weight.shape == (TGT, 9)
    assert decoder.bridge.sources == [0, 1, 1]


def test_a_unidirectional_encoder_is_half_as_wide(config_of):
    model = build(config_of("model.encoder.bidirectional=false"))
    assert model.encoder.memory_dim == 5
    assert not model.encoder.layers[0].bidirectional
    run(model)


@pytest.mark.parametrize(("ties", "readout_dim"), [("none", 8), ("decoder", 6), ("all", 6)])
def test_the_readout_fits_the_ties(config_of, ties, readout_dim):
    model = build_model(config_of(f"model.tie_embeddings={ties}"), TGT, TGT)
    assert model.decoder.output_layer.in_features == readout_dim


def test_input_feeding_widens_the_input_by_the_readout(config_of):
    cells = [
        build(config_of(*ORDERS[order])).decoder.rnn.cells[0] for order in ("luong", "luong fed")
    ]
    assert [cell.input_size for cell in cells] == [6, 6 + 8]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_is_everywhere_the_same(config_of, dropout):
    model = build(config_of(f"model.dropout={dropout}"))
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {dropout}
    assert isinstance(model.encoder.dropout, torch.nn.Dropout)
    assert isinstance(model.decoder.dropout, torch.nn.Dropout)
    assert isinstance(model.decoder.rnn.dropout, torch.nn.Dropout)


class TestTies:
    def sizes(self, config_of, ties):
        model = build_model(config_of(f"model.tie_embeddings={ties}"), TGT, TGT)
        source = model.encoder.embedding.weight
        target = model.decoder.embedding.weight
        output = model.decoder.output_layer.weight
        return model, source, target, output

    def test_untied_matrices_are_three(self, config_of):
        _, *matrices = self.sizes(config_of, "none")
        for a, b in itertools.combinations(matrices, 2):
            assert a.data_ptr() != b.data_ptr()

    def test_two_way_ties_share_target_and_output(self, config_of):
        _, source, target, output = self.sizes(config_of, "decoder")
        assert target is output
        assert source.data_ptr() != target.data_ptr()

    def test_three_way_ties_share_one_matrix(self, config_of):
        model, source, target, output = self.sizes(config_of, "all")
        assert source is target
        assert target is output
        names = [name for name, parameter in model.named_parameters() if parameter is source]
        assert names == ["encoder.embedding.weight"]

    def test_an_update_through_one_is_seen_by_all(self, config_of):
        model, source, _, output = self.sizes(config_of, "all")
        before = output.detach().clone()
        with torch.no_grad():
            source += 1.0
        assert torch.equal(model.decoder.output_layer.weight, before + 1.0)

    def test_ties_save_parameters(self, config_of):
        def count(ties):
            model, *_ = self.sizes(config_of, ties)
            return sum(parameter.numel() for parameter in model.parameters())

        assert count("decoder") - count("all") == TGT * 6


def test_the_same_random_state_gives_the_same_weights(config_of):
    first, second = build(config_of()), build(config_of())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("ties", ["none", "decoder", "all"])
def test_an_outline_has_the_shapes_and_ties_of_the_model_and_no_memory(config_of, cell, ties):
    config = config_of(f"model.cell={cell}", f"model.tie_embeddings={ties}")
    model, outline = build_model(config, 34, 34), outline_model(config, 34, 34)
    shapes = [{name: w.shape for name, w in m.named_parameters()} for m in (model, outline)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert not list(outline.buffers())


def test_an_outline_draws_no_random_numbers(config_of):
    config = config_of()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    outline_model(config, 34, 34)
    assert torch.equal(torch.rand(3), expected)


def test_an_outline_is_made_at_once(corpus):
    """Drawing on `meta` would import the compiler of torch, which takes seconds."""
    program = (
        "import sys\n"
        "from nmt.build.model import outline_model\n"
        "from nmt.config import load_config\n"
        f"outline_model(load_config({str(corpus / 'config.yaml')!r}), 34, 34)\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

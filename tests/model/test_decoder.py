"""Both decoder orders against the papers, step by step against teacher forcing, and the state."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nmt.model.dropout import Dropout
from nmt.model.encoder import Encoded


def start(model, batch):
    return model.encode(batch.src, batch.src_mask)


def tensors_of(state):
    tensors = [tensor for layer in state.layers for tensor in layer]
    return tensors if state.attentional is None else [*tensors, state.attentional]


def advance(decoder, x, layers, drop):
    """s_t = f(s_{t-1}, x_t), layer by layer."""
    new = []
    for layer, old in zip(decoder.rnn.layers, layers, strict=True):
        is_lstm = isinstance(layer, nn.LSTM)
        cell = (nn.LSTMCell if is_lstm else nn.GRUCell)(layer.input_size, layer.hidden_size)
        cell._parameters = dict(zip(cell._parameters, layer.parameters(), strict=True))
        state = cell(x, old) if is_lstm else (cell(x, *old),)
        new.append(state)
        x = drop(state[0])
    return new


def first_state(decoder, finals):
    """Layer by layer tanh(W h + b), and W c + b for the cell of an LSTM."""
    layers = []
    for layer in range(len(decoder.rnn.layers)):
        final = finals[min(layer, len(finals) - 1)]
        bridge = decoder.bridge.hidden_layers[layer]
        state = [torch.tanh(bridge.weight @ final[0] + bridge.bias)]
        if len(final) == 2:
            bridge = decoder.bridge.cell_layers[layer]
            state.append(bridge.weight @ final[1] + bridge.bias)
        layers.append(tuple(state))
    return layers


def equations(decoder, order, encoded, tgt_input, drop=lambda x: x):
    """Logits and weights of one sentence: the equations of the papers, one vector at a time."""
    layers = first_state(decoder, [tuple(t[0] for t in final) for final in encoded.finals])
    memory = decoder.attention.remember(encoded.states, encoded.mask, encoded.finals[-1][0])

    def attend(query):
        context, weights = decoder.attention(query.unsqueeze(0), memory)
        return context[0], weights[0]

    all_logits, all_weights = [], []
    attentional = None
    for y in tgt_input[0]:
        embedded = drop(decoder.embedding.weight[y])
        if order == "bahdanau":
            c, weights = attend(layers[-1][0])
            layers = advance(decoder, torch.cat([embedded, c]), layers, drop)
            s = layers[-1][0]
            W, b = decoder.readout_layer.weight, decoder.readout_layer.bias
            readout = torch.tanh(W @ torch.cat([s, c, embedded]) + b)
        else:
            W = decoder.attentional_layer.weight
            if attentional is None:
                attentional = torch.zeros(len(W), dtype=torch.float64)
            feeding = order == "luong with feeding"
            x = torch.cat([embedded, attentional]) if feeding else embedded
            layers = advance(decoder, x, layers, drop)
            h = layers[-1][0]
            c, weights = attend(h)
            readout = attentional = torch.tanh(W @ torch.cat([c, h]))
        W, b = decoder.output_layer.weight, decoder.output_layer.bias
        all_logits.append(W @ drop(readout) + b)
        all_weights.append(weights)
    return torch.stack(all_logits), torch.stack(all_weights)


def test_a_step_is_the_equations_of_its_paper(model, variant, batch):
    src, src_mask, tgt = batch.sentence(1)
    encoded = model.encoder(src, src_mask)
    readouts, weights = model.decoder(tgt, model.decoder.start(encoded))
    logits = model.decoder.output_layer(readouts)
    expected_logits, expected_weights = equations(model.decoder, variant.order, encoded, tgt)
    torch.testing.assert_close(logits[0], expected_logits)
    torch.testing.assert_close(weights[0], expected_weights)


def step_by_step(model, batch):
    state, logits, weights = start(model, batch), [], []
    for token_ids in batch.tgt.unbind(1):
        step_logits, step_weights, state = model.decoder.step(token_ids, state)
        logits.append(step_logits)
        weights.append(step_weights)
    return torch.stack(logits, 1), torch.stack(weights, 1)


def test_step_by_step_is_teacher_forcing(model, batch):
    logits, weights = model(batch.src, batch.src_mask, batch.tgt)
    step_logits, step_weights = step_by_step(model, batch)
    assert logits.shape == (3, 3, 11)
    assert weights.shape[:2] == (3, 3)
    torch.testing.assert_close(step_logits, logits)
    torch.testing.assert_close(step_weights, weights)
    direction, parameters = torch.randn_like(logits), list(model.parameters())
    forced, stepped = (
        torch.autograd.grad((predicted * direction).sum(), parameters)
        for predicted in (logits, step_logits)
    )
    torch.testing.assert_close(stepped, forced)


def test_a_step_makes_a_new_state_and_keeps_the_old(random_model, additive_variant, batch):
    model = random_model(additive_variant)
    old = start(model, batch)
    before = [tensor.clone() for tensor in tensors_of(old)]
    first, _, new = model.decoder.step(batch.tgt[:, 0], old)
    assert new.memory is old.memory
    for tensor, copy, later in zip(tensors_of(old), before, tensors_of(new), strict=True):
        assert torch.equal(tensor, copy)
        assert not torch.allclose(later, tensor)
    again, _, _ = model.decoder.step(batch.tgt[:, 0], old)
    assert torch.equal(again, first)


def test_hypotheses_of_a_batch_decode_like_each_alone(model, batch):
    """Two hypotheses a sentence; they change places, and a sentence leaves, as in beam search."""
    decoder, state = model.decoder, start(model, batch)
    _, _, state = decoder.step(torch.tensor([1, 1, 1]), state)
    state = state.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    _, _, state = decoder.step(torch.tensor([5, 4, 7, 8, 4, 6]), state)
    state = state.select(torch.tensor([1, 0, 2, 2, 4, 4])).keep(torch.tensor([0, 2]))
    logits, weights, state = decoder.step(torch.tensor([9, 2, 3, 10]), state)
    assert len(state.memory.mask) == 2
    histories = [(0, [1, 4, 9]), (0, [1, 5, 2]), (2, [1, 4, 3]), (2, [1, 4, 10])]
    for n, (i, history) in enumerate(histories):
        src, src_mask, _ = batch.sentence(i)
        expected, row = model(src, src_mask, torch.tensor([history]))
        torch.testing.assert_close(logits[n], expected[0, -1])
        torch.testing.assert_close(weights[n, : row.size(-1)], row[0, -1])


@pytest.fixture
def beam(random_model, variant_of, batch, cell, order):
    """A state of three sentences with two rows each, all different."""
    model = random_model(variant_of(cell, order, decoder_layers=2))
    _, _, state = model.decoder.step(batch.tgt[:, 0], start(model, batch))
    state = state.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    _, _, state = model.decoder.step(torch.tensor([2, 3, 4, 5, 6, 7]), state)
    return state


def test_select_moves_rows_and_leaves_the_memory(beam):
    rows = torch.tensor([1, 1, 3, 2, 4, 5])
    selected = beam.select(rows)
    assert selected.memory is beam.memory
    for old, new in zip(tensors_of(beam), tensors_of(selected), strict=True):
        assert torch.equal(new, torch.stack([old[n] for n in rows]))


def test_keep_drops_all_rows_of_a_sentence_and_its_memory(beam):
    kept = beam.keep(torch.tensor([0, 2]))
    for old, new in zip(tensors_of(beam), tensors_of(kept), strict=True):
        assert torch.equal(new, torch.stack([old[0], old[1], old[4], old[5]]))
    for name in ("states", "keys", "mask"):
        old, new = getattr(beam.memory, name), getattr(kept.memory, name)
        assert torch.equal(new, torch.stack([old[0], old[2]]))


def test_keys_are_projected_once_per_sentence(random_model, variant_of, batch, order, monkeypatch):
    model = random_model(variant_of(order=order))
    score = model.decoder.attention.score
    seen, project = [], score.project
    monkeypatch.setattr(score, "project", lambda states: seen.append(states) or project(states))
    state = start(model, batch).select(torch.tensor([0, 0, 1, 1, 2, 2]))
    for _ in range(3):
        _, _, state = model.decoder.step(torch.tensor([1, 2, 3, 4, 5, 6]), state)
        state = state.select(torch.tensor([1, 0, 2, 2, 4, 5]))
    assert [tuple(states.shape) for states in seen] == [(3, 4, 6)]


def test_the_weights_of_bahdanau_come_from_the_state_before_the_token(
    random_model, variant_of, batch, cell
):
    model = random_model(variant_of(cell, "bahdanau", encoder_layers=2, decoder_layers=2))
    decoder, state = model.decoder, start(model, batch)
    _, weights, new = decoder.step(torch.tensor([1, 4, 5]), state)
    _, others, _ = decoder.step(torch.tensor([7, 2, 9]), state)
    assert torch.equal(weights, others)
    assert torch.equal(weights, decoder.attention(state.layers[-1][0], state.memory)[1])
    _, later, _ = decoder.step(torch.tensor([1, 4, 5]), new)
    assert torch.equal(later, decoder.attention(new.layers[-1][0], new.memory)[1])


@pytest.mark.parametrize("order", ["luong", "luong with feeding"])
def test_the_weights_of_luong_come_from_the_state_after_the_token(
    random_model, variant_of, batch, cell, order
):
    model = random_model(variant_of(cell, order, encoder_layers=2, decoder_layers=2))
    decoder, state = model.decoder, start(model, batch)
    _, weights, new = decoder.step(torch.tensor([1, 4, 5]), state)
    _, others, _ = decoder.step(torch.tensor([7, 2, 9]), state)
    assert not torch.allclose(weights[:2], others[:2])  # the third source is one token long
    assert torch.equal(weights, decoder.attention(new.layers[-1][0], new.memory)[1])


def test_input_feeding_gives_the_attentional_vector_to_the_next_step(
    random_model, variant_of, batch, cell
):
    model = random_model(variant_of(cell, "luong with feeding"))
    decoder, state = model.decoder, start(model, batch)
    assert not state.attentional.any()
    logits, _, new = decoder.step(batch.tgt[:, 0], state)
    torch.testing.assert_close(decoder.output_layer(new.attentional), logits)
    fed, _, _ = decoder.step(batch.tgt[:, 1], new)
    blank = torch.zeros_like(new.attentional)
    starved, _, _ = decoder.step(batch.tgt[:, 1], replace(new, attentional=blank))
    assert not torch.allclose(fed, starved)


@pytest.mark.parametrize("order", ["bahdanau", "luong"])
def test_without_input_feeding_no_attentional_vector_is_kept(
    random_model, variant_of, batch, order
):
    model = random_model(variant_of(order=order))
    state = start(model, batch)
    _, _, new = model.decoder.step(batch.tgt[:, 0], state)
    assert state.attentional is new.attentional is None


@pytest.mark.parametrize(
    ("num_encoder_layers", "num_decoder_layers", "sources"),
    [(1, 1, [0]), (2, 2, [0, 1]), (1, 3, [0, 0, 0]), (3, 2, [0, 1]), (2, 3, [0, 1, 1])],
)
def test_each_layer_starts_from_its_encoder_layer_or_else_the_top_one(
    random_model, variant_of, cell, num_encoder_layers, num_decoder_layers, sources
):
    variant = variant_of(cell, encoder_layers=num_encoder_layers, decoder_layers=num_decoder_layers)
    decoder, width = random_model(variant).decoder, 1 if cell == "gru" else 2
    torch.manual_seed(0)
    finals = tuple(
        tuple(5 * torch.randn(2, 6, dtype=torch.float64) for _ in range(width))
        for _ in range(num_encoder_layers)
    )
    mask = torch.ones(2, 4, dtype=torch.bool)
    state = decoder.start(Encoded(torch.randn(2, 4, 6, dtype=torch.float64), finals, mask))
    assert len(state.layers) == num_decoder_layers
    for layer, source, hidden in zip(
        state.layers, sources, decoder.bridge.hidden_layers, strict=True
    ):
        assert len(layer) == width
        torch.testing.assert_close(layer[0], torch.tanh(hidden(finals[source][0])))
    if cell == "lstm":  # the cell is not bounded, so its bridge is linear
        for layer, source, project in zip(
            state.layers, sources, decoder.bridge.cell_layers, strict=True
        ):
            torch.testing.assert_close(layer[1], project(finals[source][1]))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dropout_is_on_embeddings_between_layers_and_on_the_readout_in_training(
    random_model, variant_of, batch, cell, order, training, monkeypatch
):
    variant = variant_of(cell, order, decoder_layers=2)
    decoder = random_model(variant, dropout=0.25).decoder.train(training)
    encoder = random_model(variant).encoder
    monkeypatch.setattr(  # a dropout that can be foreseen
        Dropout, "forward", lambda self, x: x * (1 + self.p) if self.training else x
    )
    src, src_mask, tgt = batch.sentence(1)
    encoded = encoder(src, src_mask)
    factor = 1.25 if training else 1
    expected, _ = equations(decoder, order, encoded, tgt, lambda x: factor * x)
    readouts, _ = decoder(tgt, decoder.start(encoded))
    torch.testing.assert_close(decoder.output_layer(readouts)[0], expected)
    state = decoder.start(encoded)
    for t, token_ids in enumerate(tgt.unbind(1)):
        logits, _, state = decoder.step(token_ids, state)
        torch.testing.assert_close(logits[0], expected[t])

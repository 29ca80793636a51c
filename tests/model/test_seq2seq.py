"""What the whole model promises: padding, batching and order change nothing; how it is born."""

import math

import pytest
import torch
from torch import nn

from nmt.model.loss import cross_entropy
from nmt.model.seq2seq import Seq2Seq


def cells_of(model):
    return [m for m in model.modules() if isinstance(m, nn.RNNBase)]


def test_a_batch_is_its_sentences(model, batch):
    logits, weights = model(batch.src, batch.src_mask, batch.tgt)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 3, dtype=torch.float64))
    for i in range(3):
        alone, row = model(*batch.sentence(i))
        torch.testing.assert_close(logits[i], alone[0])
        torch.testing.assert_close(weights[i, :, : row.size(2)], row[0])
        assert not weights[i, :, row.size(2) :].any()


def test_padding_changes_nothing(model, batch):
    logits, weights = model(batch.src, batch.src_mask, batch.tgt)
    # More of it, on both sides, and of another token.
    src = torch.cat([torch.where(batch.src_mask, batch.src, 3), torch.full((3, 2), 6)], 1)
    src_mask = torch.cat([batch.src_mask, torch.zeros(3, 2, dtype=torch.bool)], 1)
    tgt = torch.cat([torch.where(batch.tgt_mask, batch.tgt, 8), torch.full((3, 2), 7)], 1)
    padded_logits, padded_weights = model(src, src_mask, tgt)
    real, width = batch.tgt_mask, weights.size(2)
    torch.testing.assert_close(padded_logits[:, :3][real], logits[real])
    torch.testing.assert_close(padded_weights[:, :3, :width][real], weights[real])
    assert not padded_weights[:, :, width:].any()


def test_the_order_of_the_batch_does_not_matter(random_model, additive_variant, batch):
    model, order = random_model(additive_variant), [2, 0, 1]
    logits, weights = model(batch.src, batch.src_mask, batch.tgt)
    others, rows = model(batch.src[order], batch.src_mask[order], batch.tgt[order])
    torch.testing.assert_close(others, logits[order])
    torch.testing.assert_close(rows, weights[order])


def test_a_prediction_reads_only_the_tokens_before_it(random_model, additive_variant, batch):
    model = random_model(additive_variant)
    logits, _ = model(batch.src, batch.src_mask, batch.tgt)
    changed = batch.tgt.clone()
    changed[:, 2] = 6
    others, _ = model(batch.src, batch.src_mask, changed)
    assert torch.equal(others[:, :2], logits[:, :2])
    assert not torch.allclose(others[:, 2], logits[:, 2])


def parameters_without_gradient(model, batch):
    logits, _ = model(batch.src, batch.src_mask, batch.tgt)
    cross_entropy(logits, batch.tgt, batch.tgt_mask, 0.1).total.backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_gradients_reach_every_parameter(model, batch):
    assert not parameters_without_gradient(model, batch)


def test_gradients_reach_every_parameter_of_tied_models(random_model, additive_variant, batch):
    assert not parameters_without_gradient(random_model(additive_variant, tied=True), batch)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_the_encoder_may_read_one_way_or_both(
    random_model, variant_of, batch, cell, order, bidirectional
):
    model = random_model(variant_of(cell, order), bidirectional=bidirectional)
    logits, _ = model(batch.src, batch.src_mask, batch.tgt)
    src = batch.src.clone()
    src[1, 3] = 8  # the last token of the longest source
    state, other = model.encode(batch.src, batch.src_mask), model.encode(src, batch.src_mask)
    first, changed = state.memory.states[1, 0], other.memory.states[1, 0]
    assert torch.equal(first, changed) != bidirectional
    assert not torch.allclose(model(src, batch.src_mask, batch.tgt)[0][1], logits[1])


def test_dropout_makes_training_random_and_evaluation_not(random_model, additive_variant, batch):
    model = random_model(additive_variant, dropout=0.5)
    plain = random_model(additive_variant)(batch.src, batch.src_mask, batch.tgt)[0]
    assert torch.equal(model(batch.src, batch.src_mask, batch.tgt)[0], plain)
    model.train()
    one, two = (model(batch.src, batch.src_mask, batch.tgt)[0] for _ in range(2))
    assert not torch.allclose(one, two)


def test_the_same_seed_gives_the_same_weights(fresh_model, additive_variant):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(fresh_model(additive_variant).parameters())

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_initialising_sets_every_parameter(fresh_model, additive_variant):
    model = fresh_model(additive_variant)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    born = Seq2Seq(model.encoder, model.decoder)
    assert all(parameter.isfinite().all() for parameter in born.parameters())


def test_embeddings_have_rows_of_expected_length_one(fresh_model, variant_of):
    torch.manual_seed(0)
    for tied in (False, True):
        model = fresh_model(variant_of(), tied=tied, embed_dim=64, vocab_size=500)
        for embedding in (model.encoder.embedding, model.decoder.embedding):
            squares = embedding.weight.square().sum(1)
            assert float(squares.detach().mean()) == pytest.approx(1, abs=0.1)


def test_tied_logits_start_small(fresh_model, variant_of, order, batch):
    """The first loss is about that of guessing: all 500 tokens are about equally probable."""
    torch.manual_seed(0)
    model = fresh_model(variant_of(order=order), tied=True, embed_dim=64, vocab_size=500)
    assert model.decoder.output_layer.weight is model.decoder.embedding.weight
    assert model.encoder.embedding.weight is model.decoder.embedding.weight
    logits, _ = model(batch.src, batch.src_mask, batch.tgt)
    loss = cross_entropy(logits, batch.tgt, batch.tgt_mask, 0.0).negative_log_likelihood
    assert float(loss) / 8 == pytest.approx(math.log(500), abs=0.2)
    assert logits.std() < 0.5


def test_matrices_are_glorot_uniform_gate_by_gate(fresh_model, variant_of, cell, order):
    torch.manual_seed(0)
    model = fresh_model(variant_of(cell, order, decoder_layers=2), embed_dim=40)
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    for rnn in cells_of(model):
        for name, parameter in rnn.named_parameters():
            if "weight_ih" in name:
                matrices += parameter.split(rnn.hidden_size)
    for matrix in matrices:
        bound = math.sqrt(6 / sum(matrix.shape))
        assert matrix.abs().max() <= bound
        if matrix.numel() > 60:
            assert float(matrix.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_recurrent_matrices_are_orthogonal_gate_by_gate(fresh_model, additive_variant):
    model = fresh_model(additive_variant)
    rnns = cells_of(model)
    assert len(rnns) == 2 * additive_variant.encoder_layers + additive_variant.decoder_layers
    for rnn in rnns:
        for name, parameter in rnn.named_parameters():
            if "weight_hh" in name:
                gates = parameter.split(rnn.hidden_size)
                assert len(gates) == (3 if additive_variant.cell == "gru" else 4)
                for gate in gates:
                    torch.testing.assert_close(gate @ gate.T, torch.eye(rnn.hidden_size))


def test_biases_are_zero_but_one_for_the_forget_gate(fresh_model, additive_variant):
    model = fresh_model(additive_variant)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()
        if not isinstance(module, nn.RNNBase):
            continue
        H = module.hidden_size
        biases = {name: p for name, p in module.named_parameters() if "bias" in name}
        for name, bias in biases.items():
            if "hh" in name:  # of the gates i, f, g, o the sum of both biases counts
                total = bias + biases[name.replace("hh", "ih")]
                forget = 1.0 if additive_variant.cell == "lstm" else 0.0
                expected = torch.zeros_like(total)
                expected[H : 2 * H] = forget
                assert torch.equal(total, expected)

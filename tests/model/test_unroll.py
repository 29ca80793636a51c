"""Teacher forcing at once against the loop that defines it: values and all gradients."""

import gc
import weakref
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from nmt.model import scan
from nmt.model.attention import Memory
from nmt.model.decoder import DecoderState
from nmt.model.dropout import Dropout

SCORES = ["additive", "concat", "general", "dot", "scaled dot", "none"]
EMBED, HIDDEN, MEMORY, READOUT = 5, 4, 6, 8  # of the models of conftest
SHAPES = {  # source lengths, target length
    "ragged": ((2, 4, 1), 3),
    "one step": ((1, 3), 1),
    "one source token": ((1, 1), 2),
    "one sentence": ((4,), 2),
    "many sentences": ((5, 1, 7, 3, 6, 7, 2), 4),
}


@pytest.fixture(params=SCORES)
def score(request):
    return request.param


@dataclass(frozen=True)
class Problem:
    """A decoder and everything that it reads, all of which wants gradients."""

    decoder: torch.nn.Module
    embedded: torch.Tensor
    state: DecoderState

    @property
    def leaves(self):
        """All that can have a gradient, by name."""
        leaves = dict(self.decoder.named_parameters())
        leaves |= {"embedded": self.embedded, "memory states": self.state.memory.states}
        leaves["keys"] = self.state.memory.keys
        for i, layer in enumerate(self.state.layers):
            leaves |= {f"layer {i}, {j}": tensor for j, tensor in enumerate(layer)}
        return leaves


@pytest.fixture
def problem_of(random_model, variant_of):
    """A decoder of a variant before the first step, over random embedded words and states."""

    @cache
    def build_decoder(cell, order, score, depth, dropout):
        variant = variant_of(cell, order, score, decoder_layers=depth)
        return random_model(variant, dropout=dropout).decoder

    def build(cell, order, score, depth, shape="ragged", dropout=0.0):
        decoder = build_decoder(cell, order, score, depth, dropout)
        lengths, num_steps = SHAPES[shape]
        batch_size, generator = len(lengths), torch.Generator().manual_seed(1)

        def leaf(*sizes):
            return torch.randn(*sizes, dtype=torch.float64, generator=generator).requires_grad_()

        mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
        states, summary = leaf(batch_size, max(lengths), MEMORY), leaf(batch_size, MEMORY)
        made = decoder.attention.remember(states, mask, summary)
        memory = Memory(
            made.states.detach().requires_grad_(), made.keys.detach().requires_grad_(), made.mask
        )
        layers = tuple(
            tuple(leaf(batch_size, HIDDEN) for _ in range(1 if cell == "gru" else 2))
            for _ in range(depth)
        )
        first = None
        if order == "luong with feeding":
            first = torch.zeros(batch_size, READOUT, dtype=torch.float64)
        embedded = leaf(num_steps, batch_size, EMBED)
        return Problem(decoder, embedded, DecoderState(layers, first, memory))

    return build


def gradients_of(problem, objective):
    return torch.autograd.grad(objective, list(problem.leaves.values()), materialize_grads=True)


def assert_equal(actual, expected, name=""):
    torch.testing.assert_close(
        actual, expected, rtol=1e-10, atol=1e-10, msg=lambda text: f"{name}: {text}"
    )


def assert_fast_is_defined(problem, of_readouts=1.0, of_weights=1.0):
    """Values and gradients of a random objective of readouts and weights."""
    results = [
        run(problem.embedded, problem.state)
        for run in (problem.decoder.loop, problem.decoder.unroll)
    ]
    for slow, fast, name in zip(*results, ["readouts", "weights"], strict=True):
        assert_equal(fast, slow, name)
    readouts, weights = results[0]
    generator = torch.Generator().manual_seed(2)
    directions = [
        factor * torch.randn(like.shape, dtype=torch.float64, generator=generator)
        for factor, like in ((of_readouts, readouts), (of_weights, weights))
    ]
    expected, actual = (
        gradients_of(problem, sum((x * d).sum() for x, d in zip(result, directions, strict=True)))
        for result in results
    )
    for name, slow, fast in zip(problem.leaves, expected, actual, strict=True):
        assert_equal(fast, slow, f"gradient of {name}")
    return dict(zip(problem.leaves, actual, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_unrolled_is_the_loop(problem_of, cell, order, score, depth):
    for shape in SHAPES:
        gradients = assert_fast_is_defined(problem_of(cell, order, score, depth, shape))
        used = [name for name, gradient in gradients.items() if gradient.any()]
        assert {"embedded", "memory states", "layer 0, 0"} <= set(used)
        assert ("keys" in used) == (score != "none" and shape != "one source token")


@pytest.mark.parametrize(("of_readouts", "of_weights"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_gradient_may_come_from_the_weights_alone_or_from_the_readouts_alone(
    problem_of, cell, order, of_readouts, of_weights
):
    for score in ("additive", "general"):
        problem = problem_of(cell, order, score, 2)
        assert_fast_is_defined(problem, of_readouts, of_weights)
        _, weights = problem.decoder.unroll(problem.embedded, problem.state)
        gradients_of(problem, weights[..., 0].sum())  # readouts that nobody reads


def test_gradients_reach_what_trains_when_the_rest_is_frozen(problem_of, cell, order):
    problem = problem_of(cell, order, "additive", 2)
    weights = torch.randn(3, 3, READOUT, dtype=torch.float64)

    def gradients(leaves):
        readouts, _ = problem.decoder.unroll(problem.embedded, problem.state)
        return torch.autograd.grad((readouts * weights).sum(), leaves, materialize_grads=True)

    leaves = list(problem.leaves.values())
    expected = gradients(leaves)
    for chosen in ("rnn.layers.1.weight_hh_l0", "embedded", "keys"):
        for name, leaf in problem.leaves.items():
            leaf.requires_grad_(name == chosen)
        position = list(problem.leaves).index(chosen)
        assert torch.equal(gradients([leaves[position]])[0], expected[position])


def test_nothing_is_kept_where_no_gradient_is_wanted(problem_of, cell, order, score):
    problem = problem_of(cell, order, score, 2)
    with torch.no_grad():
        fast = problem.decoder.unroll(problem.embedded, problem.state)
        slow = problem.decoder.loop(problem.embedded, problem.state)
    for actual, expected in zip(fast, slow, strict=True):
        assert not actual.requires_grad
        assert_equal(actual, expected)


# --------------------------------------------------------------------------------- dropout


def test_foreseen_dropout_between_layers(problem_of, cell, order, score, monkeypatch):
    monkeypatch.setattr(
        Dropout, "forward", lambda self, x: x * (1 + self.p) if self.training else x
    )
    problem = problem_of(cell, order, score, 3, dropout=0.5)
    evaluated, _ = problem.decoder.unroll(problem.embedded, problem.state)
    problem.decoder.train()
    assert_fast_is_defined(problem)
    trained, _ = problem.decoder.unroll(problem.embedded, problem.state)
    assert not torch.allclose(trained, evaluated)


def test_dropout_between_layers_is_one_of_its_own_for_each_step_layer_and_number(
    problem_of, cell, order, score, monkeypatch
):
    """The same masks, asked for a step at a time and a layer at a time."""
    problem = problem_of(cell, order, score, 3, dropout=0.5)
    problem.decoder.train()
    num_steps, batch_size, _ = problem.embedded.shape
    torch.manual_seed(0)
    masks = 2.0 * torch.randint(2, (2, num_steps, batch_size, HIDDEN)).double()
    asked = {2: 0, 3: 0}

    def foreseen(self, x):
        number = asked[x.dim()]
        asked[x.dim()] += 1
        return x * (masks[number] if x.dim() == 3 else masks[number % 2, number // 2])

    monkeypatch.setattr(Dropout, "forward", foreseen)
    assert_fast_is_defined(problem)
    assert asked == {2: 2 * num_steps, 3: 2}


# ------------------------------------------------------------------------------ double use


def test_two_targets_of_one_source_before_one_backward_pass(problem_of, cell, order):
    for score in ("additive", "general"):
        problem = problem_of(cell, order, score, 2)

        def objective(run, problem=problem):
            first = run(problem.embedded, problem.state)
            second = run(0.5 * problem.embedded.flip(0), problem.state)
            return sum((x.sin() * x).sum() for x in (*first, *second))

        expected, actual = (
            gradients_of(problem, objective(run))
            for run in (problem.decoder.loop, problem.decoder.unroll)
        )
        for name, slow, fast in zip(problem.leaves, expected, actual, strict=True):
            assert_equal(fast, slow, name)


def test_a_second_backward_pass_is_refused_by_a_scan_and_else_the_first_one(
    problem_of, cell, order, score
):
    problem = problem_of(cell, order, score, 2)
    readouts, weights = problem.decoder.unroll(problem.embedded, problem.state)
    objective = readouts.square().sum() + weights.square().sum()
    leaves = list(problem.leaves.values())
    first = torch.autograd.grad(objective, leaves, retain_graph=True, materialize_grads=True)
    if order == "luong" or (order, score) == ("bahdanau", "none"):  # nothing to scan
        second = torch.autograd.grad(objective, leaves, materialize_grads=True)
        for once, again in zip(first, second, strict=True):
            assert_equal(again, once)
        return
    with pytest.raises(RuntimeError, match="second backward pass"):
        torch.autograd.grad(objective, leaves)


def test_a_second_derivative_is_refused(problem_of, order):
    problem = problem_of("gru", order, "additive", 1)
    readouts, _ = problem.decoder.unroll(problem.embedded, problem.state)
    keys = problem.state.memory.keys
    (gradient,) = torch.autograd.grad(readouts.square().sum(), keys, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("order", ["bahdanau", "luong with feeding"])
def test_weights_changed_between_forward_and_backward_are_noticed(problem_of, cell, order):
    problem = problem_of(cell, order, "additive", 2)
    readouts, _ = problem.decoder.unroll(problem.embedded, problem.state)
    with torch.no_grad():
        problem.decoder.rnn.layers[1].weight_ih_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        readouts.sum().backward()


@pytest.mark.parametrize("order", ["bahdanau", "luong with feeding"])
def test_attention_weights_are_not_changed_unnoticed(problem_of, order):
    problem = problem_of("gru", order, "dot", 1)

    def change_and_go_backward():
        readouts, weights = problem.decoder.unroll(problem.embedded, problem.state)
        weights.mul_(2)
        (readouts.sum() + weights.sum()).backward()

    with pytest.raises(RuntimeError, match="inplace"):  # at once, or on the way back
        change_and_go_backward()


@pytest.mark.parametrize("order", ["bahdanau", "luong with feeding"])
@pytest.mark.parametrize("backward", [True, False])
def test_what_the_steps_keep_is_freed_with_the_graph(
    problem_of, cell, order, backward, monkeypatch
):
    """At once, not when the garbage collector happens to look for cycles."""
    tapes, make = [], scan._Tape

    def make_and_watch(*args):
        tape = make(*args)
        tapes.append(weakref.ref(tape))
        return tape

    monkeypatch.setattr(scan, "_Tape", make_and_watch)
    problem = problem_of(cell, order, "additive", 2)
    gc.disable()
    try:
        readouts, weights = problem.decoder.unroll(problem.embedded, problem.state)
        if backward:
            (readouts.sum() + weights.sum()).backward()
        del readouts, weights
        assert [tape() for tape in tapes] == [None]
    finally:
        gc.enable()

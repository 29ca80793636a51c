"""A training step takes the fast path: what it calls, what it holds, and what bf16 does to it."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nmt.build.model import build_model
from nmt.config.schema import AttentionConfig, DecoderConfig, EncoderConfig, ModelConfig
from nmt.model import compiled, rnn
from nmt.model.attention import Attention, FixedContext
from nmt.model.decoder import BahdanauDecoder, Decoder, LuongDecoder
from nmt.model.rnn import RecurrentStack
from nmt.validation import Validator

ORDERS = ["bahdanau", "luong", "luong with feeding"]
SCORES = ["additive", "concat", "general", "dot", "scaled_dot", "none"]
VOCAB = 10  # of the corpus of conftest


@pytest.fixture(params=["gru", "lstm"])
def cell(request):
    return request.param


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param


@pytest.fixture(params=SCORES)
def score(request):
    return request.param


@pytest.fixture
def network():
    """Builds a freshly initialised network of two layers, as a config would."""

    def build(cell, order, score, *, size=6, key_dim=5, vocab_size=VOCAB, dropout=0.1):
        config = ModelConfig(
            cell=cell,
            embed_dim=size,
            encoder=EncoderConfig(hidden_dim=size, num_layers=2),
            decoder=DecoderConfig(
                order=order.split()[0],
                input_feeding=order.endswith("feeding"),
                hidden_dim=size,
                num_layers=2,
            ),
            attention=AttentionConfig(score=score, key_dim=key_dim),
            dropout=dropout,
        )
        torch.manual_seed(0)
        return build_model(SimpleNamespace(model=config), vocab_size, vocab_size)

    return build


@pytest.fixture
def batch_of():
    """Arguments of `Seq2Seq.loss`: a ragged batch of random tokens."""

    def build(batch_size, src_length, tgt_length, vocab_size=VOCAB):
        torch.manual_seed(1)
        src_lengths = torch.randint(1, src_length + 1, (batch_size, 1))
        tgt_lengths = torch.randint(1, tgt_length + 1, (batch_size, 1))
        src_lengths[0] = src_length
        tgt_lengths[-1] = tgt_length
        return (
            torch.randint(vocab_size, (batch_size, src_length)),
            torch.arange(src_length) < src_lengths,
            torch.randint(vocab_size, (batch_size, tgt_length)),
            torch.randint(vocab_size, (batch_size, tgt_length)),
            torch.arange(tgt_length) < tgt_lengths,
            0.1,
        )

    return build


# ------------------------------------------------------------------------- what it calls


@pytest.fixture
def no_slow_path(monkeypatch):
    """Whatever moves by one step, or packs, is an error."""

    def refusal():
        def refuse(*args, **kwargs):
            raise AssertionError("training took the slow path")

        return refuse

    for owner, name in (
        (BahdanauDecoder, "advance"),
        (LuongDecoder, "advance"),
        (Decoder, "step"),
        (Decoder, "loop"),
        (Attention, "forward"),
        (FixedContext, "forward"),
        (RecurrentStack, "forward"),
        (rnn, "advance"),
        (torch.nn.utils.rnn, "pack_padded_sequence"),
        (torch.nn.utils.rnn, "pack_sequence"),
    ):
        monkeypatch.setattr(owner, name, refusal())


def test_training_and_validation_loss_never_go_step_by_step(
    network, batches_of, trainer_of, recorder, no_slow_path, cell, order, score
):
    batches = batches_of()
    model = network(cell, order, score)
    trainer_of(model, batches).train(1, recorder())
    model.eval()
    translator = SimpleNamespace(model=model, device=torch.device("cpu"))
    assert Validator(translator, batches, [], [], None).loss(lambda: False) > 0


def test_the_slow_path_is_noticed(network, batch_of, no_slow_path, order):
    """What the test above relies on."""
    model, (src, src_mask, tgt, *_) = network("gru", order, "additive"), batch_of(2, 3, 4)
    with pytest.raises(AssertionError, match="slow path"):
        model.decoder.loop(model.decoder.embedding(tgt.t()), model.encode(src, src_mask))
    with pytest.raises(AssertionError, match="slow path"):
        torch.nn.utils.rnn.pack_padded_sequence(torch.ones(2, 1, 1), torch.tensor([2]))


def runs_wanted(cell, order, score, num_src, num_tgt):
    """How often each kernel runs each way in a batch of two layers, encoder and decoder."""
    is_additive, is_stepwise = score in ("additive", "concat"), order != "luong"
    if (order, score) == ("bahdanau", "none"):  # nothing to attend to: a plain recurrence
        is_stepwise = False
    wanted = {}
    if cell == "gru":  # both layers of the encoder in both directions, then the decoder
        wanted["gru"] = 4 * num_src + 2 * num_tgt
    elif is_stepwise:  # else it is torch's own
        wanted["lstm"] = 2 * num_tgt
    if is_stepwise:
        wanted["attend"] = num_tgt
    if order == "luong with feeding":
        wanted["join"] = num_tgt
    both = {}
    for name, number in wanted.items():
        forward = f"{name}_forward" if name in ("gru", "lstm") else name
        both |= {forward: number, f"{name}_backward": number}
    if is_additive:
        number = num_tgt if is_stepwise else 1  # all at once
        both |= {"additive_scores": number, "additive_backward": number, "additive_gradients": 1}
    return both


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_on_a_cpu_runs_a_kernel_at_every_step(
    network, batches_of, trainer_of, recorder, runs_of, cell, order, score, precision
):
    """Exactly: nothing falls back to torch's operations unnoticed."""
    batches = batches_of(20, [("abcd", "ba"), ("fed", "d")])  # 5 and 3 tokens with both ends
    trainer = trainer_of(network(cell, order, score), batches, precision=precision)
    runs = runs_of(lambda: trainer.train(1, recorder()))
    assert runs == runs_wanted(cell, order, score, 5, 3)


def test_training_in_other_precisions_runs_none(
    network, batches_of, trainer_of, recorder, runs_of, cell, order
):
    for score in ("additive", "general"):
        trainer = trainer_of(network(cell, order, score).double(), batches_of())
        assert runs_of(lambda trainer=trainer: trainer.train(1, recorder())) == {}
        if cell == "gru":  # torch has no LSTM of fp16 on a CPU
            trainer = trainer_of(network(cell, order, score), batches_of(), precision="fp16")
            assert runs_of(lambda trainer=trainer: trainer.train(1, recorder())) == {}


def test_a_trainer_loads_the_kernels_on_a_cpu_alone(
    network, batches_of, trainer_of, recorder, monkeypatch
):
    loaded = []
    monkeypatch.setattr(compiled, "load", lambda: loaded.append(1) or True)
    model, batches = network("gru", "bahdanau", "additive"), batches_of()
    trainer_of(model, batches).train(1, recorder())
    assert loaded
    loaded.clear()
    trainer_of(model, batches, device=torch.device("meta"))
    assert not loaded


def test_training_without_numba_does_the_same_in_torchs_operations(
    network, batches_of, trainer_of, recorder, runs_of, monkeypatch, cell, order
):
    def train(losses):
        hooks = recorder()
        trainer_of(network(cell, order, "additive"), batches_of()).train(3, hooks)
        losses += [report.loss for report in hooks.reports]

    with_kernels, without = [], []
    assert runs_of(lambda: train(with_kernels))
    for name in list(sys.modules):
        if name.startswith(("nmt.model.kernels", "nmt.model.compiled_tapes")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nmt.model.kernels")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert runs_of(lambda: train(without)) == {}
    assert not compiled.is_loaded()
    assert without == pytest.approx(with_kernels, rel=1e-5)


@pytest.fixture
def as_on_a_gpu():
    """Leaves out what only a CPU does, where the host has nobody to wait for."""
    assert not compiled.suits(torch.empty(1, device="meta"))
    with compiled.torch_only():
        yield


class Operations(TorchDispatchMode):
    """Writes down each operation of torch, and the size of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.seen, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name()
        indices = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)][1:]
        if name.startswith("aten::index") and any(x.dtype == torch.bool for x in indices):
            name = "aten::nonzero"  # which it calls where nobody sees it
        self.seen.add(name)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.largest = max(self.largest, tensor.numel())
        return result


WAITING = {
    "aten::_local_scalar_dense",  # item, float, bool
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::_pack_padded_sequence",
}
"""Operations whose result the host waits for."""


def test_the_loss_and_its_gradient_never_wait_for_the_device(
    network, batch_of, cell, order, score, as_on_a_gpu
):
    model, batch = network(cell, order, score).train(), batch_of(3, 4, 5)
    with Operations() as operations:
        model.loss(*batch).total.backward()
    assert len(operations.seen) > 20
    assert not operations.seen & WAITING


@pytest.mark.parametrize(
    "wait", [torch.Tensor.item, bool, torch.Tensor.nonzero, lambda x: x[x > 0], torch.unique]
)
def test_waiting_is_noticed(wait):
    with Operations() as operations:
        wait(torch.ones(1))
    assert operations.seen & WAITING


@pytest.mark.parametrize(("cell", "score"), [("gru", "additive"), ("lstm", "general")])
def test_the_loss_and_its_gradient_need_no_value_of_any_tensor(
    network, batch_of, cell, order, score, as_on_a_gpu
):
    """Fake tensors have sizes only: whatever depends on a value raises."""
    with FakeTensorMode():
        model, batch = network(cell, order, score).train(), batch_of(3, 4, 2)
        model.loss(*batch).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# ------------------------------------------------------------------------- what it holds

BATCH, SRC, TGT, KEY, LARGE_VOCAB = 32, 40, 40, 64, 2000
SCORE_HIDDEN = TGT * BATCH * SRC * KEY  # numbers of all hidden layers of the additive score
LOGITS = TGT * BATCH * LARGE_VOCAB


@pytest.fixture
def large(network, batch_of):
    """Builds a small network where scores and logits would be the largest, and its batch."""

    def build(order, score="additive"):
        model = network("gru", order, score, key_dim=KEY, vocab_size=LARGE_VOCAB).train()
        return model, batch_of(BATCH, SRC, TGT, LARGE_VOCAB)

    return build


def peak_bytes(run):
    """Most bytes that exist at one time while something runs, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_no_tensor_holds_all_scores_hidden_layers_or_all_logits(large, order):
    model, batch = large(order)
    with Operations() as operations:
        model.loss(*batch).total.backward()
    assert 0 < operations.largest < min(SCORE_HIDDEN, LOGITS) / 2


def test_a_step_as_a_whole_holds_less_than_these(large, order):
    model, batch = large(order)
    peak = peak_bytes(lambda: model.loss(*batch).total.backward())
    assert 0 < peak < 4 * min(SCORE_HIDDEN, LOGITS)


def test_the_loop_and_a_plain_output_layer_hold_more(large, order):
    """What the two tests above rely on."""
    model, (src, src_mask, tgt_input, *_) = large(order)
    with Operations() as operations:
        model(src, src_mask, tgt_input)
    assert operations.largest == LOGITS
    state = model.encode(src, src_mask)

    def loop():
        embedded = model.decoder.embedding(tgt_input.t())
        model.decoder.loop(embedded, state)[0].sum().backward()

    assert peak_bytes(loop) > 4 * SCORE_HIDDEN


# ----------------------------------------------------------------------------- precision


def relative(actual, expected):
    """Length of the difference, as a share of the length."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def loss_and_gradients(model, batch):
    model.zero_grad()
    total = model.loss(*batch).total
    total.backward()
    return total.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("score", ["additive", "general"])
def test_autocast_to_bf16_is_fp32_but_for_rounding(network, batch_of, cell, order, score):
    """bf16 has 8 significant bits: each rounding changes a number by up to 0.4 %."""
    model = network(cell, order, score, size=32, key_dim=32, dropout=0.0)
    batch = batch_of(8, 20, 40)
    loss, expected = loss_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        low_loss, actual = loss_and_gradients(model, batch)
    assert low_loss.dtype == torch.float32
    assert relative(low_loss, loss) < 0.001
    for name, gradient in actual.items():
        assert gradient.dtype == torch.float32
        assert relative(gradient, expected[name]) < 0.03, name


def test_a_model_of_bf16_weights_trains(network, batch_of, cell, order):
    for score in ("concat", "dot", "none"):
        model, batch = network(cell, order, score, size=32, dropout=0.0), batch_of(6, 20, 30)
        loss, expected = loss_and_gradients(model, batch)
        low_loss, actual = loss_and_gradients(model.bfloat16(), batch)
        assert relative(low_loss, loss) < 0.005
        for name, gradient in actual.items():
            assert gradient.dtype == torch.bfloat16
            assert relative(gradient, expected[name]) < 0.1, name

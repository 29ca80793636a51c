"""Search with the rewritten decoder finds what search with the model itself finds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nmt.build.model import build_model
from nmt.config import Config
from nmt.decoding import Searcher, SearchOptions
from nmt.model import compiled
from nmt.search.beam import beam_search

VOCAB = 90
FILES = {"src": "none", "tgt": "none"}
SOURCES = [[5, 9, 4], [7], [8, 8, 20, 31, 6, 4, 5], [11, 40], [9, 5, 4, 30]]
CPU = torch.device("cpu")
KINDS = [
    ("gru", "bahdanau", "additive", 1),
    ("lstm", "bahdanau", "concat", 2),
    ("gru", "luong", "general", 2),
    ("lstm", "luong", "dot", 1),
    ("gru", "luong with feeding", "scaled_dot", 1),
    ("gru", "bahdanau", "none", 1),
]


def make_model(cell="gru", order="bahdanau", score="additive", num_layers=1):
    """A random model, sure enough of itself that rounding decides nothing."""
    decoder = {"order": order.split()[0], "hidden_dim": 12, "num_layers": num_layers}
    decoder["input_feeding"] = order.endswith("feeding")
    values = {
        "run_dir": "none",
        "src_lang": "xx",
        "tgt_lang": "yy",
        "data": {"train": FILES, "valid": FILES},
        "model": {
            "cell": cell,
            "embed_dim": 10,
            "encoder": {"hidden_dim": 9},
            "decoder": decoder,
            "attention": {"score": score, "key_dim": 7},
        },
    }
    torch.manual_seed(1)
    model = build_model(Config.model_validate(values), VOCAB, VOCAB).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter *= 2
        model.decoder.output_layer.weight *= 3
    return model


def options(**values):
    common = {
        "beam_size": 5,
        "length_penalty": 1.0,
        "min_length": 1,
        "max_length_ratio": 2.0,
        "batch_tokens": 4096,
    }
    return SearchOptions(**{**common, **values})


def ids_of(found):
    return [[h.token_ids for h in hypotheses] for hypotheses in found]


def assert_same(found, expected, tolerance=1e-4):
    assert ids_of(found) == ids_of(expected)
    for one, other in zip(found, expected, strict=True):
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=tolerance)


def search_with_the_model_itself(model, source, wanted):
    """Search one sentence with `Decoder.step`."""
    src = torch.tensor([[*source, 3]])

    def step(token_ids, state):
        logits, _, state = model.decoder.step(token_ids, state)
        return logits, state

    with torch.no_grad():
        [found] = beam_search(
            step,
            model.encode(src, torch.ones_like(src).bool()),
            beam_size=wanted.beam_size,
            n_best=wanted.n_best,
            max_lengths=torch.from_numpy(wanted.max_lengths(np.array([len(source)]))),
            min_length=wanted.min_length,
            alpha=wanted.length_penalty,
            bos_id=2,
            eos_id=3,
            forbidden_ids=(0, 2),
        )
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("beam_size", "n_best"), [(1, 1), (2, 1), (5, 5)])
def test_it_finds_what_the_model_itself_finds(kind, beam_size, n_best):
    model, wanted = make_model(*kind).double(), options(beam_size=beam_size, n_best=n_best)
    expected = [search_with_the_model_itself(model, source, wanted) for source in SOURCES]
    assert_same(Searcher(model, CPU)(SOURCES, wanted), expected)


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.int8])
def test_a_batch_is_its_sentences(precision):
    searcher = Searcher(make_model(), CPU, precision)
    together = searcher(SOURCES, options(n_best=3))
    alone = [found for source in SOURCES for found in searcher([source], options(n_best=3))]
    if precision is None:
        assert_same(together, alone)
    else:  # the encoder is bf16, whose sums depend a little on the shape of the batch
        for one, other in zip(together, alone, strict=True):
            assert one[0].score == pytest.approx(other[0].score, abs=0.2)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("order", ["bahdanau", "luong with feeding"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_lower_precision_finds_nearly_the_same(cell, order, precision):
    model, draw = make_model(cell, order), np.random.Generator(np.random.PCG64(0))
    sources = [draw.integers(4, VOCAB, 1 + i % 7).tolist() for i in range(40)]
    exact = Searcher(model, CPU)(sources, options())
    found = Searcher(model, CPU, precision)(sources, options())
    off = [abs(one[0].score - other[0].score) for one, other in zip(found, exact, strict=True)]
    assert max(off) > 0
    assert np.median(off) < 0.05  # of about -10
    assert np.mean(np.array(off) < 0.6) >= 0.8  # a random model: rounding may change its mind


@pytest.mark.parametrize("fused", [True, False])
def test_weights_that_have_changed_are_seen(fused):
    model = make_model()
    searcher = Searcher(model, CPU)
    searcher(SOURCES, options())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2, fused=fused)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert_same(searcher(SOURCES, options()), Searcher(model, CPU)(SOURCES, options()))
    with torch.no_grad():
        model.decoder.output_layer.bias.copy_(torch.linspace(0, 5, VOCAB))
    assert_same(searcher(SOURCES, options()), Searcher(model, CPU)(SOURCES, options()))
    before = searcher(SOURCES, options())
    with torch.no_grad():
        for parameter in model.encoder.layers.parameters():
            parameter.neg_()
    found = searcher(SOURCES, options())
    assert found != before
    assert_same(found, Searcher(model, CPU)(SOURCES, options()))


def test_the_decoder_is_rewritten_once():
    searcher = Searcher(make_model(), CPU)
    first = searcher.prepare()
    searcher(SOURCES, options())
    assert searcher.prepare() is first


def words_of(source):
    """Some target words for each source: specials, and what its tokens hint at."""
    hints = [i for token in source for i in (token, token + 20, token * 7 % VOCAB)]
    return np.unique(np.array([0, 1, 2, 3, *hints])).astype(np.int32)


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.int8])
def test_a_shortlist_of_all_words_changes_nothing(precision):
    model = make_model()
    searcher = Searcher(model, CPU, precision, shortlist=lambda _: np.arange(VOCAB))
    expected = Searcher(model, CPU, precision)(SOURCES, options(n_best=3))
    assert_same(searcher(SOURCES, options(n_best=3)), expected)


@pytest.mark.parametrize("beam_size", [1, 5])
def test_a_shortlist_is_of_each_sentence_alone(beam_size):
    searcher = Searcher(make_model(), CPU, shortlist=words_of)
    wanted = options(beam_size=beam_size, n_best=beam_size)
    together = searcher(SOURCES, wanted)
    assert_same(together, [h for source in SOURCES for h in searcher([source], wanted)])
    for source, hypotheses in zip(SOURCES, together, strict=True):
        used = {i for h in hypotheses for i in h.token_ids}
        assert used <= set(words_of(source).tolist()) - {0, 2}


def test_what_a_shortlist_leaves_out_has_no_probability():
    model = make_model()
    found = Searcher(model, CPU, shortlist=words_of)(SOURCES, options())
    forbid = [set(range(VOCAB)) - set(words_of(source).tolist()) for source in SOURCES]
    for source, ids, [best] in zip(SOURCES, forbid, found, strict=True):
        cut = make_model()
        with torch.no_grad():
            cut.decoder.output_layer.bias[sorted(ids)] = -torch.inf
        assert_same([[best]], Searcher(cut, CPU)([source], options()))


# ----------------------------------------------------------------------------- compiled loops


OF_EVERY_SEARCH = {"best_extensions", "join_step"}


@pytest.mark.parametrize(
    ("cell", "order", "score", "others"),
    [
        ("gru", "bahdanau", "additive", {"gru_step", "add_context", "additive_scores"}),
        ("lstm", "bahdanau", "concat", {"lstm_step", "add_context", "additive_scores"}),
        ("gru", "luong with feeding", "additive", {"gru_step", "additive_scores"}),
        ("lstm", "luong", "general", {"lstm_step"}),
        ("gru", "bahdanau", "none", {"gru_step", "add_context"}),
    ],
)
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("has_shortlist", [False, True])
def test_a_search_is_compiled_once_kernels_are_loaded(
    runs_of, cell, order, score, others, precision, has_shortlist
):
    model = make_model(cell, order, score)
    searcher = Searcher(model, CPU, precision, shortlist=words_of if has_shortlist else None)
    found = []
    runs = runs_of(lambda: found.extend(searcher(SOURCES, options())))
    assert runs.keys() == OF_EVERY_SEARCH | others
    with compiled.torch_only():
        expected = searcher(SOURCES, options())
    if precision is None:
        assert_same(found, expected)
    scores = [h[0].score for h in expected]
    assert [h[0].score for h in found] == pytest.approx(scores, abs=0.2)
    assert runs_of(lambda: Searcher(model.double(), CPU)(SOURCES, options())) == {}


@pytest.mark.parametrize("n_best", [1, 4])
@pytest.mark.parametrize("wanted", [{}, {"min_length": 4}, {"max_length": 2}, {"beam_size": 1}])
def test_a_compiled_search_obeys_its_options(kernels, n_best, wanted):
    wanted = options(n_best=min(n_best, wanted.get("beam_size", 5)), **wanted)
    searcher = Searcher(make_model(), CPU)
    found = searcher(SOURCES, wanted)
    with compiled.torch_only():
        assert_same(found, searcher(SOURCES, wanted))


def test_weights_of_bf16_are_searched_with_and_without_compiled_loops(kernels):
    """In a process of its own, since a kernel that is mistaken in a type writes anywhere."""
    model = make_model().bfloat16()
    with compiled.torch_only():
        expected = Searcher(model, CPU)(SOURCES, options())
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_decoding import CPU, SOURCES, Searcher, compiled, make_model, options
assert compiled.load()
found = Searcher(make_model().bfloat16(), CPU)(SOURCES, options())
print(*(h[0].score for h in found))
"""
    done = run_python(code)
    assert [float(x) for x in done.split()] == pytest.approx(
        [h[0].score for h in expected], abs=0.3
    )


def run_python(code):
    """What a process of its own writes."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADING = """
import sys, torch
sys.path.insert(0, {folder!r})
from nmt import decoding
from test_decoding import CPU, SOURCES, Searcher, compiled, make_model, options
assert not compiled.is_loaded()
"""


def loading(code):
    """What a process of its own says that has loaded no kernels."""
    folder = str(Path(__file__).parent)
    return run_python(LOADING.format(folder=folder) + code)


SECONDS = """
def seconds(searcher, sources, beam_size):
    lengths = [len(source) + 1 for source in sources]
    return searcher.prepare().decoder.seconds_saved(lengths, beam_size)
"""


def test_a_short_text_is_searched_without_loading_and_a_long_one_loads():
    code = """
searcher = Searcher(make_model(), CPU)
decoding.LOADING_SECONDS = 2.5 * seconds(searcher, SOURCES, 5)
found = [searcher(SOURCES, options()) for _ in range(2)]
print(compiled.is_loaded())
found.append(searcher(SOURCES, options()))
print(compiled.is_loaded())
from nmt.model import kernels
print(kernels.best_extensions.num_runs > 0)
print(len({str([h[0].token_ids for h in some]) for some in found}))
"""
    assert loading(SECONDS + code).split() == ["False", "True", "True", "1"]


def test_what_is_settled_changes_only_by_what_is_told():
    code = """
searcher = Searcher(make_model(), CPU)
lengths = [len(source) + 1 for source in SOURCES]
decoding.LOADING_SECONDS = 1.5 * seconds(searcher, SOURCES, 5)
tables = lambda: searcher.prepare().decoder.tokens.table is not None
print(searcher.settle([2], 5), compiled.is_loaded(), tables())
searcher(30 * SOURCES, options())
print(compiled.is_loaded(), tables())
print(searcher.settle(lengths, 5), compiled.is_loaded(), tables())
print(searcher.settle(lengths, 5), compiled.is_loaded(), tables())
print(searcher.settle(lengths, 5))
"""
    # The target has 90 tokens, so that its table is made by the second time that it is told of 25.
    first, later = ["False", "False", "False"], ["False", "False"]
    assert loading(SECONDS + code).split() == [
        *(first + later),
        *("True", "False", "True"),
        *("True", "True", "True"),
        "False",
    ]


def test_other_weights_are_settled_too():
    model = make_model()
    searcher = Searcher(model, CPU)
    searcher.settle([1], 1)
    with torch.no_grad():
        model.decoder.output_layer.bias.add_(1.0)
    searcher(10 * SOURCES, options())
    assert searcher.prepare().decoder.tokens.table is None


@pytest.mark.parametrize("kind", ["double()", "bfloat16()"])
def test_a_model_that_kernels_do_not_suit_never_loads_them(kind):
    code = f"""
decoding.LOADING_SECONDS = 1e-12
searcher = Searcher(make_model().{kind}, CPU)
searcher(SOURCES, options())
searcher.settle([1000] * 1000, 5)
print(compiled.is_loaded())
"""
    assert loading(code).split() == ["False"]


def test_what_is_settled_is_compiled_and_has_its_tables_for_processes_to_share():
    code = """
searcher = Searcher(make_model(), CPU)
searcher.settle([1000] * 1000, 5)
print(compiled.is_loaded())
from nmt.model import kernels
print(all("address" in vars(kernel) for kernel in kernels.OF_SEARCH))
folded = searcher.prepare()
print(folded.decoder.tokens.table is not None)
print(all(d.of_tokens.table is not None for d in folded.encoder.layers[0]))
"""
    assert loading(code).split() == ["True"] * 4


def test_a_search_works_without_numba():
    code = """
sys.modules["numba"] = None
searcher = Searcher(make_model(), CPU)
searcher.settle([1000] * 1000, 5)
decoding.LOADING_SECONDS = 0.0
print(len(searcher(SOURCES, options())), compiled.is_loaded())
"""
    assert loading(code).split() == [str(len(SOURCES)), "False"]


def test_it_is_estimated_what_loading_saves():
    decoder = Searcher(make_model(score="general"), CPU).prepare().decoder
    assert decoder.seconds_saved([3, 4], 2) == pytest.approx(2 * 7 * VOCAB * 1e-9)
    decoder = Searcher(make_model(), CPU).prepare().decoder
    pairs = 7 * (3**2 + 4**2)
    assert decoder.seconds_saved([3, 4], 2) == pytest.approx(2 * (7 * VOCAB + pairs / 2) * 1e-9)
    assert decoder.seconds_saved([], 2) == 0.0
    assert Searcher(make_model().double(), CPU).prepare().decoder.seconds_saved([9], 2) == 0.0

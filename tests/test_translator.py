"""From text to text: line N is line N, however it is batched, and reported scores are true."""

import math
from functools import cache

import numpy as np
import pytest
import torch

import nmt.translator
from nmt.build.model import build_model
from nmt.config import Config
from nmt.model.folded_encoder import FoldedEncoder
from nmt.search.beam import length_penalty
from nmt.text.tokenizer import EOS_ID, train_tokenizer
from nmt.translator import SearchOptions, Translator

WORDS = [a + b for a in ("ba", "de", "ki", "mo", "lu", "ra") for b in ("", "ba", "no", "ti", "su")]
CORPUS = [" ".join(WORDS[i * k % 30] for k in range(1, i % 8 + 2)) for i in range(120)]
SENTENCES = ["", *CORPUS[:9], " ", "\u3000\u200b", CORPUS[3], "\x00 ra\u2028ba", "漢字 \ud800"]
COMMON = {
    "beam_size": 3,
    "length_penalty": 1.0,
    "min_length": 1,
    "max_length_ratio": 2.0,
    "batch_tokens": 4096,
}
FILES = {"src": "none", "tgt": "none"}
ORDERS = ["bahdanau", "luong", "luong with feeding"]

every_model = pytest.mark.parametrize(
    ("cell", "order", "score"),
    [(cell, order, "additive") for cell in ("gru", "lstm") for order in ORDERS]
    + [("gru", "luong", "general"), ("lstm", "bahdanau", "dot"), ("gru", "bahdanau", "none")],
)


@cache
def tokenizer():
    return train_tokenizer(CORPUS, kind="bpe", vocab_size=60)


def make_translator(cell="gru", order="bahdanau", score="additive", dropout=0.0, **options):
    """A random model, sure enough of itself that rounding decides nothing."""
    decoder = {"order": order.split()[0], "hidden_dim": 12, "num_layers": 2}
    decoder["input_feeding"] = order.endswith("feeding")
    values = {
        "run_dir": "none",
        "src_lang": "xx",
        "tgt_lang": "yy",
        "data": {"train": FILES, "valid": FILES},
        "model": {
            "cell": cell,
            "embed_dim": 10,
            "dropout": dropout,
            "encoder": {"hidden_dim": 9},
            "decoder": decoder,
            "attention": {"score": score, "key_dim": 7},
        },
    }
    torch.manual_seed(3)
    model = build_model(Config.model_validate(values), len(tokenizer()), len(tokenizer()))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter *= 2
        model.decoder.output_layer.weight *= 3
        model.decoder.output_layer.bias[EOS_ID] += 1
    settings = {
        "max_source_length": 100,
        "options": SearchOptions(**COMMON),
        "device": torch.device("cpu"),
    }
    return Translator(model, tokenizer(), tokenizer(), **{**settings, **options})


def assert_same(found, expected):
    """The same translations, with scores within 1e-5.

    A token's log-probability is the difference of two fp32 sums. Where the units of these are so
    large that 1e-5 is less than four of them, it is within four.
    """
    assert [t.src for t in found] == [t.src for t in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.num_pieces == other.num_pieces
        assert [h.token_ids for h in one.hypotheses] == [h.token_ids for h in other.hypotheses]
        for a, b in zip(one.hypotheses, other.hypotheses, strict=True):
            assert (a.text, a.tokens) == (b.text, b.tokens)
            assert a.score == pytest.approx(b.score, abs=1e-5)
            close = max(1e-5, 4 * float(np.spacing(np.float32(abs(b.log_prob)))))
            assert a.token_log_probs == pytest.approx(b.token_log_probs, abs=close)


def test_what_is_settled_depends_on_the_lengths_and_the_beam(monkeypatch):
    translator, settled = make_translator(), []
    monkeypatch.setattr(translator.searcher, "settle", lambda *given: settled.append(given) or True)
    assert translator.settle(SENTENCES)
    lengths = [len(token_ids) + 1 for token_ids in tokenizer().encode(SENTENCES)]
    assert settled == [(lengths, COMMON["beam_size"])]


@every_model
def test_the_result_does_not_depend_on_batches_or_their_order(cell, order, score):
    translator = make_translator(cell, order, score)
    expected = [t for s in SENTENCES for t in translator.translate([s], options(n_best=3))]
    assert len({len(t.tokens) for t in expected}) > 3
    longest = max(len(ids) for ids in tokenizer().encode(SENTENCES)) + 1
    for size in (1, 7, 64):
        found = translator.translate(SENTENCES, options(n_best=3, batch_tokens=size * longest))
        assert_same(found, expected)
    backwards = translator.translate(SENTENCES[::-1], options(n_best=3))
    assert_same(backwards[::-1], expected)


@pytest.mark.parametrize("batch_tokens", [1, 10, 30, 4096])
def test_no_batch_exceeds_its_budget_of_source_positions(batch_tokens, monkeypatch):
    translator, shapes, encode = make_translator(), [], FoldedEncoder.__call__

    def note(src):
        shapes.append((*src.shape, torch.is_grad_enabled()))

    def noting(self, src, src_mask):
        note(src)
        return encode(self, src, src_mask)

    monkeypatch.setattr(FoldedEncoder, "__call__", noting)  # of a search
    translator.model.encoder.register_forward_pre_hook(lambda _, args: note(args[0]))
    sentences = CORPUS[:20]
    translator.translate(sentences, options(batch_tokens=batch_tokens, max_length=2))
    translator.options = options(batch_tokens=batch_tokens)
    translator.score([(sentence, "ba") for sentence in sentences])
    assert sum(size for size, _, _ in shapes) == 40
    assert all(size == 1 or size * length <= batch_tokens for size, length, _ in shapes)
    assert not any(with_gradient for _, _, with_gradient in shapes)


def options(**values):
    return SearchOptions(**{**COMMON, **values})


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u3000", "\u200b", "\0", "\u2028"])
def test_a_blank_sentence_has_one_empty_translation(blank):
    [before, translation, after] = make_translator().translate(
        ["ba", blank, "ba"], options(n_best=3)
    )
    assert translation.src == blank
    assert len(translation.hypotheses) == 1
    assert (translation.text, translation.score, translation.tokens) == ("", 0.0, [])
    assert before.text == after.text != ""
    assert len(before.hypotheses) == 3


def test_line_n_stays_line_n():
    translator = make_translator()
    greedy = options(beam_size=1, max_length=4)
    lines = [SENTENCES[i * i % 31 % len(SENTENCES)] for i in range(1000)]
    expected = {s: translator.translate([s], greedy)[0].text for s in SENTENCES}
    assert lines.count("") > 10
    assert len(set(expected.values())) > 5
    found = list(translator.stream(iter(lines), greedy, window=64))
    assert [t.src for t in found] == lines
    assert [t.text for t in found] == [expected[line] for line in lines]
    assert [t.text for t in translator.translate(lines, greedy)] == [t.text for t in found]


def test_a_stream_is_read_a_window_at_a_time():
    read = []

    def lines():
        for line in CORPUS[:10]:
            read.append(line)
            yield line

    stream = make_translator().stream(lines(), options(max_length=2), window=4)
    assert read == []
    for number in range(10):
        assert next(stream).src == CORPUS[number]
        assert len(read) == min(number // 4 * 4 + 4, 10)
    assert list(stream) == []


def test_a_string_is_not_a_list_of_sentences():
    with pytest.raises(TypeError, match=r"write translate\(\[sentence\]\)"):
        make_translator().translate("a b")


def test_nothing_in_nothing_out():
    translator = make_translator()
    assert translator.translate([]) == []
    assert list(translator.stream(iter([]))) == []
    assert translator.force([]) == translator.score([]) == []


@every_model
def test_a_score_reported_is_the_score_given(cell, order, score):
    translator = make_translator(cell, order, score)
    for alpha in (0.0, 1.0):
        for translation in translator.translate(
            CORPUS[:8], options(n_best=3, length_penalty=alpha, min_length=2)
        ):
            given = translator.attend(translation)
            for hypothesis, forced in zip(translation.hypotheses, given, strict=True):
                assert forced.log_prob == pytest.approx(hypothesis.log_prob, abs=1e-4)
                assert forced.token_log_probs == pytest.approx(hypothesis.token_log_probs, abs=1e-4)
                assert forced.tgt_tokens == hypothesis.tokens
                assert hypothesis.score == pytest.approx(
                    hypothesis.log_prob / length_penalty(len(hypothesis.tokens), alpha), abs=1e-5
                )


@every_model
def test_attention_is_that_of_the_steps_that_lead_to_the_hypothesis(cell, order, score):
    translator = make_translator(cell, order, score)
    decoder, [translation] = (
        translator.model.decoder,
        translator.translate([CORPUS[6]], options(n_best=3)),
    )
    src = torch.tensor([[*tokenizer().encode([CORPUS[6]])[0], EOS_ID]])
    for hypothesis, forced in zip(
        translation.hypotheses, translator.attend(translation), strict=True
    ):
        with torch.no_grad():
            state, rows = translator.model.encode(src, torch.ones_like(src).bool()), []
            for token_id in [2, *hypothesis.token_ids]:
                _, weights, state = decoder.step(torch.tensor([token_id]), state)
                rows.append(weights[0].numpy())
        num_src = src.size(1) if score != "none" else 1
        assert forced.weights.shape == (len(hypothesis.tokens), num_src)
        assert forced.weights.dtype == np.float32
        np.testing.assert_allclose(forced.weights, rows, atol=1e-5)
        np.testing.assert_allclose(forced.weights.sum(1), 1.0, atol=1e-5)
    assert translator.has_attention == (score != "none")


def test_given_pairs_are_scored_like_each_alone():
    translator = make_translator()
    pairs = list(zip(CORPUS[:10], CORPUS[10:20], strict=True))
    together = translator.score(pairs)
    for (src, tgt), forced in zip(pairs, together, strict=True):
        [alone] = translator.score([(src, tgt)])
        assert forced.src.words == src.split()
        assert forced.tgt.words == tgt.split()
        assert forced.src_tokens[-1] == forced.tgt_tokens[-1] == "</s>"
        assert forced.weights.shape == (len(forced.tgt_tokens), len(forced.src_tokens))
        assert forced.log_prob == pytest.approx(math.fsum(forced.token_log_probs))
        assert forced.token_log_probs == pytest.approx(alone.token_log_probs, abs=1e-4)
        np.testing.assert_allclose(forced.weights, alone.weights, atol=1e-5)
        assert len(forced.token_log_probs) == len(forced.tgt_tokens)


def test_pairs_that_cannot_be_run_are_left_empty(monkeypatch):
    monkeypatch.setattr(nmt.translator, "FORCED_LIMIT", 3)
    ba, long = "ba", "b" * 4
    *empty, fits = make_translator().score(
        [("", ba), (ba, " "), ("", ""), (long, ba), (ba, "ra ra ra ra"), (ba, ba)]
    )
    assert fits.weights.size
    assert fits.log_prob < 0
    for forced in empty:
        assert (forced.log_prob, forced.token_log_probs) == (0.0, [])
        assert forced.weights.shape == (0, 0)
    assert empty[3].src.words == [long]


def test_forcing_is_limited_at_the_limit(monkeypatch):
    num_tokens = len(tokenizer().segment(CORPUS[7]).tokens)
    for limit, runs in ((num_tokens, True), (num_tokens - 1, False)):
        monkeypatch.setattr(nmt.translator, "FORCED_LIMIT", limit)
        for pair in ((CORPUS[7], "ba"), ("ba", CORPUS[7])):
            [forced] = make_translator().score([pair])
            assert bool(forced.weights.size) == runs


def pieces_of(translator, sentence, search_options):
    """The sources that search was asked for, and the translation."""
    asked = []
    search = translator.search
    translator.search = lambda sources, o: asked.extend(sources) or search(sources, o)
    [translation] = translator.translate([sentence], search_options)
    del translator.search
    return asked, translation


@pytest.mark.parametrize("limit", [5, 6, 7, 12, 40])
def test_a_long_sentence_is_split_between_words(limit):
    sentence = " ".join(CORPUS[6:16])
    [token_ids] = tokenizer().encode([sentence])
    assert len(token_ids) > 40
    asked, translation = pieces_of(
        make_translator(max_source_length=limit), sentence, options(max_length=3)
    )
    assert [i for piece in asked for i in piece] == token_ids
    assert max(map(len, asked)) <= limit
    assert len(asked) == translation.num_pieces > 1
    starts = [tokenizer().tokens(piece)[0] for piece in asked]
    assert all(start.startswith("▁") for start in starts)
    words = [tokenizer().decode(piece) for piece in asked]
    assert " ".join(words) == sentence
    for piece, following in zip(asked, words[1:], strict=False):  # no piece has room for more
        [first_word] = tokenizer().encode([following.split()[0]])
        assert len(piece) + len(first_word) > limit


def test_a_word_beyond_the_limit_is_cut_anywhere():
    [token_ids] = tokenizer().encode(["b" * 23])
    asked, translation = pieces_of(
        make_translator(max_source_length=5), "b" * 23, options(max_length=3)
    )
    assert [i for piece in asked for i in piece] == token_ids
    assert [len(piece) for piece in asked[:-1]] == [5] * (len(asked) - 1)
    assert translation.num_pieces == len(asked) == math.ceil(len(token_ids) / 5)


def test_a_sentence_at_the_limit_is_not_split():
    num_tokens = len(tokenizer().encode([CORPUS[7]])[0])
    assert make_translator(max_source_length=num_tokens).translate([CORPUS[7]])[0].num_pieces == 1
    translation = make_translator(max_source_length=num_tokens - 1).translate([CORPUS[7]])[0]
    assert translation.num_pieces == 2


def test_a_split_sentence_is_the_translations_of_its_pieces():
    translator = make_translator(max_source_length=3)
    asked, translation = pieces_of(translator, CORPUS[7], options(n_best=3))
    parts = [found for piece in asked for found in translator.search([piece], options(n_best=3))]
    assert len(parts) > 2
    assert len(translation.hypotheses) == 3
    for rank, hypothesis in enumerate(translation.hypotheses):
        found = [part[rank] for part in parts]
        texts = [tokenizer().decode(part.token_ids) for part in found]
        assert hypothesis.text == " ".join(text for text in texts if text)
        assert hypothesis.score == pytest.approx(sum(p.score for p in found) / len(found), abs=1e-5)
        assert hypothesis.log_prob == pytest.approx(sum(p.log_prob for p in found), abs=1e-5)
        bodies = [i for part in found for i in part.token_ids[:-1]]
        assert hypothesis.tokens == [*tokenizer().tokens(bodies), "</s>"]
        inner = [x for part in found for x in part.token_log_probs[:-1]]
        expected = [*inner, found[-1].token_log_probs[-1]]
        assert hypothesis.token_log_probs == pytest.approx(expected, abs=1e-5)
    given = translator.attend(translation)
    assert [f.tgt_tokens for f in given] == [h.tokens for h in translation.hypotheses]


def test_a_piece_without_a_translation_leaves_no_space():
    translator = make_translator(max_source_length=3)
    with torch.no_grad():
        translator.model.decoder.output_layer.bias[EOS_ID] += 1000
    [translation] = translator.translate([CORPUS[7]], options(min_length=0))
    assert translation.num_pieces > 1
    assert (translation.text, translation.tokens) == ("", ["</s>"])
    assert translator.attend(translation)[0].weights.shape == (0, 0)


def test_a_line_of_100_000_characters_is_translated():
    translator, line = make_translator(max_source_length=2000), "b" * 50_000 + " mo ra" * 8_334
    assert len(line) > 100_000
    [translation] = translator.translate([line], options(beam_size=1, max_length=2))
    assert translation.num_pieces > 10


def test_n_best_are_sorted_and_distinct():
    for translation in make_translator().translate(CORPUS[:10], options(beam_size=5, n_best=5)):
        scores = [hypothesis.score for hypothesis in translation.hypotheses]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(h.token_ids) for h in translation.hypotheses}) == 5
        assert (translation.text, translation.score) == (str(translation), scores[0])
        assert translation.tokens == translation.hypotheses[0].tokens


def test_a_hypothesis_is_its_tokens():
    for translation in make_translator().translate(CORPUS[:10], options(beam_size=5, n_best=5)):
        for h in translation.hypotheses:
            assert h.tokens == [*tokenizer().tokens(h.token_ids), "</s>"]
            assert h.text == tokenizer().decode(h.token_ids)
            assert not {"<pad>", "<s>"} & set(h.tokens)
            assert len(h.tokens) == len(h.token_log_probs)
            assert math.fsum(h.token_log_probs) == pytest.approx(h.log_prob, abs=1e-5)


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (3, 5), (0, 2), (7, 7), (4, 30)])
def test_translations_have_the_length_that_is_asked_for(shortest, longest):
    wanted = options(min_length=shortest, max_length=longest)
    lengths = [len(t.tokens) - 1 for t in make_translator().translate(CORPUS[:20], wanted)]
    assert all(shortest <= length <= longest for length in lengths)


def test_a_model_that_never_ends_is_ended_by_the_length_of_the_source():
    endless = make_translator()
    with torch.no_grad():
        endless.model.decoder.output_layer.bias[EOS_ID] -= 1000
    for sentence in CORPUS[:5]:
        limit = 2 * len(tokenizer().encode([sentence])[0]) + 10
        [translation] = endless.translate([sentence])
        assert len(translation.tokens) == limit + 1


def test_the_model_of_a_translator_drops_nothing():
    translator = make_translator(dropout=0.9)
    assert not translator.model.training
    before = torch.get_rng_state()
    first = translator.translate(CORPUS[:5])
    assert_same(translator.translate(CORPUS[:5]), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_bf16_gives_nearly_the_scores_of_fp32(cell, order):
    exact, rough = (make_translator(cell, order, precision=p) for p in (None, torch.bfloat16))
    pairs = list(zip(CORPUS[:8], CORPUS[8:16], strict=True))
    for a, b in zip(exact.score(pairs), rough.score(pairs), strict=True):
        assert b.token_log_probs != a.token_log_probs
        assert b.token_log_probs == pytest.approx(a.token_log_probs, abs=1.0, rel=0.1)
        np.testing.assert_allclose(b.weights.sum(1), 1.0, atol=0.02)
    for translation in rough.translate(CORPUS[:8], options(n_best=3)):
        given = rough.attend(translation)
        for hypothesis, forced in zip(translation.hypotheses, given, strict=True):
            assert math.isfinite(hypothesis.score)
            assert hypothesis.log_prob == pytest.approx(forced.log_prob, abs=1.0, rel=0.1)

"""Tokenizers: what is cut can be joined again, whatever the text is."""

import io
import time

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nmt.errors import ModelError
from nmt.text.tokenizer import Tokenizer, train_tokenizer

UNEVEN = [
    "",
    " ",
    "\t",
    "\u3000",
    "\u200b",
    "a  b ",
    "  a",
    "½ ﬁne",
    "a\u00a8b c",
    "ﷺ x",
    "😀 a😀b",
]
UNEVEN += ["x\u200by \u200b z", "<s> </s> <unk> <pad>", "▁ a▁b", "e\u0301 \u0301", "a\tb\x1fc"]
BROKEN = ["a\0b", "\0", "a\ud800b", "\udfff", "a\u2028b", "\u2029", "a\nb\rc\x85d\x0be", "\ufeffa"]


KINDS = ["unigram", "bpe", "word", "char"]
every_kind = pytest.mark.parametrize("kind", [*KINDS, "bytes"])


@every_kind
def test_the_special_ids_are_the_same_in_every_tokenizer(tokenizer_of, kind):
    pieces = tokenizer_of(kind).tokens([0, 1, 2, 3])
    assert pieces == ["<pad>", "<unk>", "<s>", "</s>"]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char", "bytes"])
def test_decoding_undoes_encoding(tokenizer_of, corpus, kind):
    tokenizer = tokenizer_of(kind)
    encoded = tokenizer.encode(corpus[:251])
    assert [tokenizer.decode(ids) for ids in encoded] == corpus[:251]
    assert not any({0, 1, 2, 3} & set(ids) for ids in encoded)


def test_decoding_undoes_encoding_of_known_words(corpus):
    tokenizer = train_tokenizer(corpus[:250], kind="word", vocab_size=50)
    known = [piece.removeprefix("▁") for piece in tokenizer.tokens(range(4, 50))]
    [token_ids] = tokenizer.encode([" ".join(known)])
    assert token_ids == list(range(4, 50))
    assert tokenizer.decode(token_ids) == " ".join(known)


@every_kind
@pytest.mark.parametrize("blank", ["", " ", " \t ", "\u3000", "\u200b", "\0", "\u2028", "\x1f"])
def test_blank_text_has_no_tokens(tokenizer_of, kind, blank):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode([blank]) == [[]]
    assert tokenizer.segment(blank).token_ids == []
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([]) == ""


@every_kind
@given(text=st.text(max_size=30))
@example(text="a\ud800\0\u2028\nb")
@settings(max_examples=60, deadline=None)
def test_any_text_is_cut_into_tokens_that_know_their_word(tokenizer_of, kind, text):
    tokenizer = tokenizer_of(kind)
    segmented = tokenizer.segment(text)
    assert segmented.token_ids == tokenizer.encode([text])[0]
    assert len(segmented.tokens) == len(segmented.word_ids) == len(segmented.token_ids)
    assert segmented.word_ids == sorted(segmented.word_ids)
    assert all(0 <= word < len(segmented.words) for word in segmented.word_ids)
    decoded = tokenizer.decode(segmented.token_ids)
    assert len(io.StringIO(decoded).readlines()) <= 1
    assert decoded.encode("utf-8").decode("utf-8") == decoded


@every_kind
@pytest.mark.parametrize("text", [*UNEVEN, *BROKEN])
def test_odd_text_is_read(tokenizer_of, kind, text):
    segmented = tokenizer_of(kind).segment(text)
    assert segmented.token_ids == tokenizer_of(kind).encode([text])[0]
    assert len(segmented.words) == len(text.replace("\0", " ").split())


def words_of(segmented):
    """For each word its tokens."""
    words = [""] * len(segmented.words)
    for token, word in zip(segmented.tokens, segmented.word_ids, strict=True):
        words[word] += token.replace("▁", "")
    return words


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
@pytest.mark.parametrize(
    ("text", "words", "pieces"),
    [
        ("나는 밥을 먹었다", ["나는", "밥을", "먹었다"], ["나는", "밥을", "먹었다"]),
        ("  bada  keki ", ["bada", "keki"], ["bada", "keki"]),
        ("bada\u3000keki\u00a0tu", ["bada", "keki", "tu"], ["bada", "keki", "tu"]),
        ("１２３ ﬁne", ["１２３", "ﬁne"], ["123", "fine"]),
        ("cafe\u0301 x", ["cafe\u0301", "x"], ["café", "x"]),
        ("a\u00a8b c", ["a\u00a8b", "c"], ["a\u0308b", "c"]),
        ("a \u200b b", ["a", "\u200b", "b"], ["a", "", "b"]),
        ("bada\u200b keki", ["bada\u200b", "keki"], ["bada", "keki"]),
        ("a \ufeff\u3000keki \u200b", ["a", "\ufeff", "keki", "\u200b"], ["a", "", "keki", ""]),
        ("a\0b\u2028c", ["a", "b", "c"], ["a", "b", "c"]),
        ("😀 a😀b", ["😀", "a😀b"], ["😀", "a😀b"]),
        ("", [], []),
    ],
)
def test_a_token_belongs_to_the_word_it_stands_in(tokenizer_of, kind, text, words, pieces):
    segmented = tokenizer_of(kind).segment(text)
    assert segmented.words == words
    assert words_of(segmented) == pieces


def ids_of(tokenizer, tokens):
    vocabulary = tokenizer.tokens(range(len(tokenizer)))
    return [vocabulary.index(token) for token in tokens]


@pytest.mark.parametrize(
    ("tokens", "word_ids", "words"),
    [
        (["▁", "b", "a", "▁", "d", "a"], [0, 0, 0, 1, 1, 1], ["ba", "da"]),
        (["▁", "▁", "b", "▁"], [0, 0, 0, 1], ["b", ""]),
        (["b", "▁", "d"], [0, 1, 1], ["b", "d"]),
        (["▁", "<unk>", "▁", "b"], [0, 0, 1, 1], ["⁇", "b"]),
        (["▁", "b", "<unk>", "d"], [0, 0, 1, 2], ["b", "⁇", "d"]),
        (["<unk>", "<unk>"], [0, 1], ["⁇", "⁇"]),
        ([], [], []),
    ],
)
def test_found_tokens_are_grouped_into_words(tokenizer_of, tokens, word_ids, words):
    tokenizer = tokenizer_of("char")
    token_ids = ids_of(tokenizer, tokens)
    segmented = tokenizer.segment_ids(token_ids)
    assert segmented.token_ids == token_ids
    assert segmented.tokens == tokens
    assert segmented.word_ids == word_ids
    assert segmented.words == words


def test_an_unknown_word_between_words_is_a_word(tokenizer_of):
    tokenizer = tokenizer_of("word")
    first, second = tokenizer.tokens([10, 11])
    assert tokenizer.segment_ids([10, 1, 11]).words == [first[1:], "⁇", second[1:]]


@pytest.mark.parametrize("kind", [*KINDS])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_words_of_found_tokens_are_those_of_their_text(tokenizer_of, kind, data):
    tokenizer = tokenizer_of(kind)
    token_ids = data.draw(st.lists(st.integers(4, len(tokenizer) - 1) | st.just(1)))
    segmented = tokenizer.segment_ids(token_ids)
    assert [word for word in segmented.words if word] == tokenizer.decode(token_ids).split()


@pytest.mark.parametrize(("kind", "alpha"), [("unigram", 0.01), ("bpe", 0.3)])
def test_a_seed_draws_the_same_segmentation_and_others_draw_others(
    tokenizer_of, longest, kind, alpha
):
    tokenizer, seeds = tokenizer_of(kind), range(20)
    drawn = [tokenizer.sample(longest, alpha, seed) for seed in seeds]
    assert [tokenizer.sample(longest, alpha, seed) for seed in reversed(seeds)] == drawn[::-1]
    assert len({tuple(token_ids) for token_ids in drawn}) > 5
    assert {tokenizer.decode(token_ids) for token_ids in drawn} == {longest}


@pytest.mark.parametrize(("kind", "alpha"), [("unigram", 20.0), ("bpe", 0.0)])
def test_without_noise_the_drawn_segmentation_is_the_best(tokenizer_of, corpus, kind, alpha):
    tokenizer, sentences = tokenizer_of(kind), corpus[:50]
    drawn = [tokenizer.sample(sentence, alpha, seed=1) for sentence in sentences]
    assert drawn == tokenizer.encode(sentences)


def test_bpe_dropout_of_almost_all_merges_leaves_characters(tokenizer_of, longest):
    tokenizer = tokenizer_of("bpe")
    drawn = tokenizer.tokens(tokenizer.sample(longest, 0.9999, seed=1))
    assert all(len(token) == 1 for token in drawn)


def test_sampling_reads_odd_text(tokenizer_of):
    for text in [*UNEVEN, *BROKEN]:
        assert tokenizer_of("unigram").sample(text, 0.5, seed=1) is not None


def test_byte_pieces_decode_to_one_line(tokenizer_of):
    tokenizer = tokenizer_of("bytes")
    token_ids = ids_of(tokenizer, ["<0x61>", "<0x0A>", "<0x62>", "<0x0D>", "<0xE2>", "<0x80>"])
    token_ids += ids_of(tokenizer, ["<0xA8>", "<0x63>", "<0xFF>"])
    assert tokenizer.decode(token_ids) == "a b c\ufffd"


def test_byte_fallback_knows_every_character(tokenizer_of):
    text = "漢字 😀 שלום"
    [token_ids] = tokenizer_of("bytes").encode([text])
    assert 1 not in token_ids
    assert tokenizer_of("bytes").decode(token_ids) == text
    assert 1 in tokenizer_of("unigram").encode([text])[0]


def test_special_tokens_are_left_out_of_the_text_but_unknown_is_shown(tokenizer_of):
    tokenizer = tokenizer_of("unigram")
    [token_ids] = tokenizer.encode(["bada"])
    assert tokenizer.decode([2, *token_ids, 3, 0, 0]) == "bada"
    assert tokenizer.decode([*token_ids, 1]) == "bada ⁇ "


def test_special_tokens_in_the_text_are_text(tokenizer_of):
    for kind in KINDS:
        assert not {0, 2, 3} & set(tokenizer_of(kind).encode(["<pad> <s> </s> a"])[0])


@every_kind
@pytest.mark.parametrize("text", [("bada keki " * 10_000), "a" * 100_000])
def test_100_000_characters_are_cut_in_a_second(tokenizer_of, kind, text):
    tokenizer, began = tokenizer_of(kind), time.process_time()
    segmented = tokenizer.segment(text)
    tokenizer.segment_ids(segmented.token_ids)
    assert time.process_time() - began < 1.0
    assert segmented.token_ids == tokenizer.encode([text])[0]


def test_a_saved_tokenizer_is_the_same(tokenizer_of, corpus, tmp_path):
    tokenizer = tokenizer_of("bpe")
    tokenizer.save(tmp_path / "a.model")
    loaded = Tokenizer.load(tmp_path / "a.model")
    assert loaded.model == tokenizer.model == (tmp_path / "a.model").read_bytes()
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode(corpus) == tokenizer.encode(corpus)


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_model_file_is_named(tokenizer_of, tmp_path, damage):
    model = tokenizer_of("bpe").model
    path = tmp_path / "a.model"
    path.write_bytes({"empty": b"", "cut": model[: len(model) // 2], "text": b"hello\n"}[damage])
    with pytest.raises(ModelError) as error:
        Tokenizer.load(path)
    assert str(error.value) == f"{path}: is not a SentencePiece model, or is damaged"


def test_a_foreign_model_is_refused(corpus):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=100, minloglevel=2
    )
    with pytest.raises(ModelError) as error:
        Tokenizer(model.getvalue(), "foreign.model")
    assert str(error.value) == (
        "foreign.model: pad, unk, bos and eos must have the ids 0, 1, 2, 3, but have -1, 0, 1, 2; "
        "train it with `nmt tokenizer train`"
    )


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(ModelError) as error:
        Tokenizer.load(tmp_path / "none.model")
    assert str(error.value) == f"{tmp_path}/none.model: cannot be read: No such file or directory"


def test_an_unknown_word_that_is_spelled_in_bytes_stays_a_word(corpus):
    tokenizer = train_tokenizer(corpus, kind="word", vocab_size=320, byte_fallback=True)
    for text in ["나는 漢字 밥을", "漢字 漢字", "나는 漢字"]:
        [token_ids] = tokenizer.encode([text])
        assert tokenizer.decode(token_ids) == text


def test_unknown_tokens_are_counted(tokenizer_of):
    found = tokenizer_of("unigram").count_unknown(["bada", "", "bada 漢 字", "漢"])
    assert (found.num_unknown, found.first_line) == (3, 3)
    assert found.share == 3 / found.num_tokens
    assert found.advice("x") == (
        f"x: 3 of {found.num_tokens} tokens are unknown (the first is in line 3); a tokenizer "
        "trained with tokenizer.byte_fallback: true spells what it does not know"
    )
    assert tokenizer_of("unigram").count_unknown([]).share == 0

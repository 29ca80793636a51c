"""A decoder that is restricted to some words gives these the logits of the whole decoder."""

import pytest
import torch

from nmt.model.folded import fold
from nmt.model.restricted import RestrictedDecoder

ALLOWED = [[0, 1, 2, 5, 9], [0, 1, 2, 3, 5], [0, 1, 2, 10]]


@pytest.fixture
def folded(random_model, variant_of, batch):
    """A model, its folded decoder, and its encoded batch."""
    model = random_model(variant_of())
    with torch.no_grad():
        yield model, fold(model.decoder), model.encoder(batch.src, batch.src_mask)


def restrict(decoder, allowed):
    return RestrictedDecoder(decoder, [torch.tensor(ids) for ids in allowed])


def test_allowed_words_have_their_logits_and_others_none(folded):
    _, decoder, encoded = folded
    restricted = restrict(decoder, ALLOWED)
    assert restricted.token_ids.tolist() == [0, 1, 2, 3, 5, 9, 10, *[0] * 57]
    state, whole = restricted.start(encoded), decoder.start(encoded)
    state, whole = (s.select(torch.tensor([0, 0, 1, 1, 2, 2])) for s in (state, whole))
    token_ids = torch.tensor([5, 9, 3, 5, 10, 2])
    logits, state = restricted.step(restricted.places(token_ids), state)
    expected, _, whole = decoder.step(token_ids, whole)
    logits, expected = logits.dense(), expected.dense()
    for row, allowed in enumerate(ids for ids in ALLOWED for _ in range(2)):
        places = restricted.places(torch.tensor(allowed))
        torch.testing.assert_close(logits[row, places], expected[row, allowed])
        assert logits[row].isfinite().sum() == len(allowed)
    # The state goes on as that of the whole decoder, and sentences may leave.
    state, whole = (s.keep(torch.tensor([2])) for s in (state, whole))
    logits, _ = restricted.step(restricted.places(torch.tensor([1, 10])), state)
    expected, _, _ = decoder.step(torch.tensor([1, 10]), whole)
    logits, expected = logits.dense(), expected.dense()
    places = restricted.places(torch.tensor(ALLOWED[2]))
    torch.testing.assert_close(logits[:, places], expected[:, ALLOWED[2]])
    assert (logits.isfinite().sum(1) == len(ALLOWED[2])).all()


def test_the_whole_decoder_is_left_as_it_is(folded):
    _, decoder, encoded = folded
    before, _, _ = decoder.step(torch.tensor([1, 2, 3]), decoder.start(encoded))
    restrict(decoder, ALLOWED)
    after, _, _ = decoder.step(torch.tensor([1, 2, 3]), decoder.start(encoded))
    assert torch.equal(before.dense(), after.dense())

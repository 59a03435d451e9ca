"""Caption batches have the lengths that they say, whatever their size."""

from __future__ import annotations

import pytest
import torch

from benchmarks.parts.common.captions import SOURCES, make_captions
from clipfast.data.random_pairs import web_lengths
from clipfast.tokenizer import END_OF_TEXT, START_OF_TEXT


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_captions_are_padded_tokens_with_their_lengths(source, batch):
    captions = make_captions(source, batch)
    assert captions.tokens.shape == (batch, 77)
    assert captions.tokens.dtype == torch.int64
    for row, length in zip(captions.tokens, captions.lengths.tolist(), strict=True):
        assert row[0] == START_OF_TEXT
        assert row[length - 1] == END_OF_TEXT
        assert row.argmax() == length - 1
        assert not row[length:].any()
        assert (row[1 : length - 1] < START_OF_TEXT).all()
        assert (row[1 : length - 1] > 0).all()
    assert captions.cut_tokens.shape == (batch, captions.lengths.max())
    assert captions.fields["captions"] == source
    assert captions.fields["max_length"] == captions.lengths.max()


def test_captions_from_the_web_have_mean_twenty_and_long_ones():
    quantiles = (torch.arange(100_000) + 0.5) / 100_000
    lengths = web_lengths(quantiles)
    assert lengths.double().mean() == pytest.approx(20, abs=0.2)
    assert (lengths.min(), lengths.max()) == (3, 77)
    assert lengths.double().median() == 17
    assert (lengths > 44).double().mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("source", SOURCES)
def test_captions_of_a_small_batch_have_the_mean_of_a_large_one(source):
    large = make_captions(source, 4096).fields["mean_length"]
    assert make_captions(source, 16).fields["mean_length"] == pytest.approx(large, rel=0.05)


def test_captions_repeat_and_come_in_random_order():
    first, second = make_captions("web", 64), make_captions("web", 64)
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.lengths, first.lengths.sort().values)
    assert not torch.equal(first.tokens, make_captions("web", 64, seed=1).tokens)


def test_captions_refuse_an_unknown_source():
    with pytest.raises(ValueError, match="expected one of sample, web, got 'book'"):
        make_captions("book", 4)

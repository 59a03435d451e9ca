"""Random pairs in the place of data: what they are like, and that they repeat."""

import itertools

import pytest
import torch

from clipfast.data import EvalLoader, SyntheticLoader
from clipfast.data.random_pairs import web_lengths
from clipfast.data.synthetic_name import DEFAULT_SAMPLES, synthetic_samples
from clipfast.preprocessing import MEAN, STD
from clipfast.tokenizer import END_OF_TEXT, START_OF_TEXT


def take(loader: SyntheticLoader, count: int) -> list:
    return list(itertools.islice(loader, count))


def same(first, second) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.tokens, second.tokens)


@pytest.mark.parametrize(
    ("patterns", "samples"),
    [
        (["synthetic"], DEFAULT_SAMPLES),
        (["synthetic:1"], 1),
        (["synthetic:1_000_000"], 1_000_000),
        (["sample", "a.tar"], None),
        ([], None),
    ],
)
def test_synthetic_samples_reads_the_number(patterns, samples):
    assert synthetic_samples(patterns) == samples


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["synthetic:0"], "'synthetic:0': the samples of an epoch are a whole number from 1"),
        (["synthetic:x"], "'synthetic:x': the samples of an epoch"),
        (["synthetic:"], "'synthetic:': the samples of an epoch"),
        (["synthetic:-4"], "a whole number"),
        (["synthetic:1e6"], "'synthetic:1000000'"),
        (["synthetic:9999999999999999"], "1,099,511,627,776"),
        (["synthetic", "a.tar"], "'synthetic' stands alone"),
        (["synthetic:8", "synthetic:9"], "'synthetic:8' stands alone"),
    ],
)
def test_synthetic_samples_refuses_with_what_to_write(patterns, words):
    with pytest.raises(ValueError, match=words):
        synthetic_samples(patterns)


def test_eval_loader_names_what_takes_synthetic_pairs():
    with pytest.raises(ValueError, match="trained on alone"):
        EvalLoader("synthetic", 64, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_synthetic_loader_gives_batches_like_a_train_loaders(dtype):
    loader = SyntheticLoader(100, 32, 14, rank=1, world_size=2, dtype=dtype)
    (batch,) = take(loader, 1)
    assert batch.images.shape == (7, 3, 32, 32)
    assert batch.images.dtype == dtype
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.lengths.dtype == batch.tokens.dtype == torch.int64
    assert batch.tokens.shape == (7, batch.lengths.max())
    for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
        assert row[0] == START_OF_TEXT
        assert row.argmax() == length - 1
        assert row[length - 1] == END_OF_TEXT
        assert (row[1 : length - 1] > 0).all()
        assert (row[1 : length - 1] < START_OF_TEXT).all()
        assert not row[length:].any()
    assert batch.row.tolist() == list(range(7, 14))


def test_synthetic_images_are_every_byte_as_often():
    (batch,) = take(SyntheticLoader(8, 64, 8), 1)
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    pixels = ((batch.images * deviation + mean) * 255).round()
    counts = torch.bincount(pixels.long().flatten(), minlength=256)
    expected = pixels.numel() / 256
    # chi^2 with 255 degrees of freedom: mean 255, deviation 22.6.
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * 22.6


def test_synthetic_captions_have_the_laws_mean_in_a_small_batch():
    quantiles = (torch.arange(100_000) + 0.5) / 100_000
    mean = web_lengths(quantiles).double().mean()
    batches = take(SyntheticLoader(640, 8, 64), 10)
    means = [batch.lengths.double().mean() for batch in batches]
    assert torch.stack(means).mean() == pytest.approx(mean, rel=0.02)
    assert len(set(means)) > 1
    assert not torch.equal(batches[0].lengths, batches[0].lengths.sort().values)


def test_synthetic_loader_repeats_and_differs_by_seed_step_epoch_and_rank():
    def first(**options):
        return take(SyntheticLoader(8, 16, 8, **options), 1)[0]

    assert same(first(), first())
    others = [first(seed=1), first(rank=0, world_size=2), first(rank=1, world_size=2)]
    others += take(SyntheticLoader(8, 16, 8), 3)[1:]
    assert [batch.epoch for batch in others[-2:]] == [1, 2]
    for batch in others:
        assert not torch.equal(batch.images[:4], first().images[:4])
    assert not same(others[1], others[2])


def test_synthetic_loader_goes_on_where_it_stopped():
    whole = SyntheticLoader(24, 16, 8)
    batches = take(whole, 5)
    halted = SyntheticLoader(24, 16, 8)
    take(halted, 4)
    again = SyntheticLoader(24, 16, 8)
    again.load_state_dict(halted.state_dict())
    assert halted.state_dict()["epoch"] == 1
    assert same(take(again, 1)[0], batches[4])


def test_synthetic_loader_refuses_a_state_of_other_data():
    state = SyntheticLoader(24, 16, 8).state_dict()
    with pytest.raises(ValueError, match="samples was 24, is 32; seed was 0, is 1"):
        SyntheticLoader(32, 16, 8, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="shards was 0f, is synthetic"):
        SyntheticLoader(24, 16, 8).load_state_dict({**state, "shards": "0f"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 7}, "7 synthetic samples are less than one global batch of 8"),
        ({"samples": 0}, "samples must be from 1"),
        ({"batch_size": 9, "world_size": 2, "samples": 9}, "does not divide by 2 ranks"),
        ({"image_size": 8000, "batch_size": 80_000, "samples": 80_000}, "more than the memory"),
    ],
)
def test_synthetic_loader_refuses_what_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        SyntheticLoader(**{"samples": 8, "image_size": 16, "batch_size": 8, **options})

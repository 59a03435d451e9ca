"""Batches decoded by micro-batch: the pixels of the whole share, in both passes, within a bound."""

import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clipfast.data import SyntheticLoader, TrainLoader, stream
from clipfast.data.batch import ImageTextBatch
from clipfast.data.decode import DecodedBatch
from clipfast.data.encoded import EncodedBatch, Request
from clipfast.data.order import SampleRefs
from clipfast.data.stream import Jobs, Stream
from tests.data.broken import good, kinds, write_shard
from tests.process_use import ProcessUse, assert_flat, without_the_collector

# Crops are larger than their files, as a rule: whether they are kept is then a question.
SIZE = 64
BROKEN = kinds()
# Found by its caption, by its header, and by the decoder alone.
MIXED = ("zero-width", "html", "jpeg cut in its pixels", "png with a wrong checksum")
BAD = {(shard, row) for shard in range(2) for row in (3, 10, 17)}
PART_BYTES = 4 * SIZE * SIZE * 3


def take(loader, count: int) -> list:
    return list(itertools.islice(loader, count))


def places(batches) -> list[tuple[int, int]]:
    return [
        place
        for batch in batches
        for place in zip(batch.shard.tolist(), batch.row.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[str]:
    """Two shards of 24 samples, three of them broken in each."""
    folder = tmp_path_factory.mktemp("mixed")
    shards = []
    for shard in range(2):
        samples = [good(100 * shard + i) for i in range(24)]
        for i, name in enumerate(MIXED[shard:] + MIXED[:1]):
            if i < 3:
                samples[3 + 7 * i] = BROKEN[name]
        shards.append(write_shard(folder / f"{shard}.tar", samples))
    return shards


def both_passes(loader: TrainLoader, batches: int, parts: int) -> Iterator[list[ImageTextBatch]]:
    """The micro-batches of some batches, the second pass compared with the first."""
    for batch in itertools.islice(loader, batches):
        lazy = batch.parts(parts, passes=2)
        first = list(lazy)
        for m in range(parts):
            again = lazy[m]
            assert torch.equal(again.images, first[m].images)
            assert torch.equal(again.tokens, first[m].tokens)
        yield first


def assert_same(parts: list[ImageTextBatch], whole: ImageTextBatch) -> None:
    assert places(parts) == places([whole])
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.lengths for part in parts]), whole.lengths)
    for part, tokens in zip(parts, whole.tokens.chunk(len(parts)), strict=True):
        longest = int(part.lengths.max())
        assert torch.equal(part.tokens, tokens[:, :longest])
        assert not tokens[:, longest:].any()
        assert (part.epoch, part.index) == (whole.epoch, whole.index)


@pytest.mark.parametrize("keep_bytes", [1 << 30, 2 * PART_BYTES, 0])
@pytest.mark.parametrize("decode", ["exact", "scaled"])
def test_micro_batches_are_the_whole_share_in_both_passes(decode, keep_bytes):
    options = {"seed": 3, "decode": decode, "threads": 2, "scale": (0.5, 1.0)}
    whole = TrainLoader("sample", SIZE, 16, **options)
    lazy = TrainLoader("sample", SIZE, 16, micro_batch=4, keep_bytes=keep_bytes, **options)
    for one, parts in zip(take(whole, 5), both_passes(lazy, 5, 4), strict=True):
        assert_same(parts, one)
    assert lazy.state_dict() == whole.state_dict()


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 2), (1, 4), (2, 1), (2, 2)])
@pytest.mark.parametrize("keep_bytes", [1 << 30, 0])
def test_what_stands_in_for_broken_samples_does_not_depend_on_micro_batches(
    mixed, ranks, micro_batch, keep_bytes
):
    alone = TrainLoader(mixed, SIZE, 8, seed=1, threads=1, on_error="skip")
    whole = take(alone, 15)
    shares, names = [], set()
    for rank in range(ranks):
        loader = TrainLoader(
            *(mixed, SIZE, 8),
            micro_batch=micro_batch,
            keep_bytes=keep_bytes,
            seed=1,
            rank=rank,
            world_size=ranks,
            threads=2,
            on_error="skip",
        )
        shares.append(list(both_passes(loader, 15, 8 // ranks // micro_batch)))
        names |= {(each.shard, each.row, each.reason) for each in loader.skipped}
    assert {(each.shard, each.row, each.reason) for each in alone.skipped} == names
    assert {(shard, row) for shard, row, _ in names} == BAD
    for one, *parts in zip(whole, *shares, strict=True):
        assert_same(list(itertools.chain(*parts)), one)


def test_a_broken_sample_is_known_after_the_first_pass_and_told_once(mixed):
    whole = TrainLoader(mixed, SIZE, 8, seed=1, threads=1, on_error="skip", on_skip=id)
    told = []
    lazy = TrainLoader(
        mixed, SIZE, 8, micro_batch=2, seed=1, threads=1, on_error="skip", on_skip=told.append
    )
    for _, batch in zip(take(whole, 12), lazy, strict=False):
        parts = batch.parts(4, passes=2)
        met = {(s.shard, s.row) for part in parts for s in part.skipped}
        assert met <= {(each.shard, each.row) for each in told}
        list(parts)
        if batch.epoch * lazy.batches_per_epoch + batch.index == 11:
            break
    assert {(s.shard, s.row) for s in told} == {(s.shard, s.row) for s in whole.skipped} == BAD
    assert len(told) == len(BAD)


@pytest.mark.parametrize("kind", ["html", "png with a wrong checksum"])
def test_a_broken_sample_stops_the_first_pass_of_its_own_batch(tmp_path, kind):
    samples = [good(i) if i != 13 else BROKEN[kind] for i in range(16)]
    shard = write_shard(tmp_path / "x.tar", samples)
    loader = TrainLoader(shard, SIZE, 8, micro_batch=2, shuffle=False, threads=1)
    batches = iter(loader)
    first = next(batches).parts(4, passes=2)
    # The second pass already decodes ahead: what is broken there is no fault of this batch.
    for _ in range(2):
        assert places(list(first)) == [(0, row) for row in range(8)]
    second = next(batches).parts(4, passes=2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'000013' of shard .*x\.tar"):
            list(second)
    batches.close()


@pytest.mark.parametrize("stop", [1, 7])
def test_a_stream_resumes_bit_for_bit_with_another_micro_batch(mixed, stop):
    options = {"seed": 3, "threads": 1, "on_error": "skip", "on_skip": id}
    whole = take(TrainLoader(mixed, SIZE, 8, **options), 14)
    first = TrainLoader(mixed, SIZE, 8, micro_batch=2, **options)
    list(both_passes(first, stop, 4))
    resumed = TrainLoader(mixed, SIZE, 8, micro_batch=4, **options)
    resumed.load_state_dict(first.state_dict())
    for one, parts in zip(whole[stop:], both_passes(resumed, 14 - stop, 2), strict=True):
        assert_same(parts, one)


def test_attributes_put_the_share_together_and_parts_may_be_left_out():
    whole = TrainLoader("sample", SIZE, 12, seed=2)
    lazy = TrainLoader("sample", SIZE, 12, micro_batch=3, seed=2)
    for i, (one, batch) in enumerate(zip(take(whole, 4), lazy, strict=False)):
        if i == 1:
            continue
        assert torch.equal(batch.images, one.images)
        assert torch.equal(batch.tokens, one.tokens)
        assert places([batch]) == places([one])
        halves = batch.parts(2)
        assert torch.equal(torch.cat([half.images for half in halves]), one.images)
        if i == 3:
            break


def test_a_batch_that_is_over_says_so():
    loader = iter(TrainLoader("sample", SIZE, 8, micro_batch=2))
    parts = next(loader).parts(4, passes=1)
    assert len(parts[-1].images) == 2
    with pytest.raises(RuntimeError, match=r"micro-batch 3 was asked for .* passes=1\) said"):
        parts[3]
    with pytest.raises(IndexError):
        parts[4]
    later = next(loader)
    with pytest.raises(RuntimeError, match="this batch is over"):
        parts[0]
    loader.close()
    with pytest.raises(RuntimeError, match="Keep the iterator"):
        later.parts(4)


def test_a_micro_batch_divides_the_share():
    for loader in (
        lambda: TrainLoader("sample", SIZE, 16, world_size=2, micro_batch=3),
        lambda: SyntheticLoader(64, SIZE, 16, world_size=2, micro_batch=3),
    ):
        with pytest.raises(ValueError, match=r"micro_batch=3 does not divide a rank's share.* 8"):
            loader()
    # The share alone would fit no memory.
    SyntheticLoader(1 << 20, 4096, 1 << 20, micro_batch=2)


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_synthetic_micro_batches_are_the_whole_share(micro_batch):
    whole = take(SyntheticLoader(600, SIZE, 60, seed=4), 3)
    lazy = SyntheticLoader(600, SIZE, 60, seed=4, micro_batch=micro_batch)
    for one, parts in zip(whole, both_passes(lazy, 3, 60 // micro_batch), strict=True):
        assert_same(parts, one)


def test_a_stream_left_in_the_middle_ends_its_threads(tmp_path):
    broken = write_shard(tmp_path / "x.tar", [good(i) for i in range(9)] + [BROKEN["html"]] * 7)

    def fail() -> None:
        for batch in TrainLoader(broken, SIZE, 8, micro_batch=2, shuffle=False):
            list(batch.parts(4))

    def visit(asked: int) -> None:
        for batch in TrainLoader("sample", SIZE, 32, micro_batch=4, threads=2, keep_bytes=5000):
            parts = batch.parts(8, passes=2)
            for m in [*range(8), *range(8)][:asked]:
                parts[m]
            if batch.index == 1:
                break

    with without_the_collector():
        visit(3)
        before = ProcessUse.now()
        for asked in (0, 3, 11):
            visit(asked)
            with pytest.raises(ValueError, match="'000009'"):
                fail()
        assert_flat(before, megabytes=8)


class Counted:
    """A decoder that pulls ahead as DALI does; a picture's crop is its number."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.results = 0
        self.flying: deque[EncodedBatch] = deque()

    def __iter__(self) -> "Counted":
        return self

    def __next__(self) -> DecodedBatch:
        while len(self.flying) < 3:
            self.flying.append(next(self.jobs))
        self.results += 1
        encoded = self.flying.popleft()
        assert encoded.images, "its files were given up"
        return DecodedBatch(torch.full((1, 10, 10, 1), encoded.request.part), encoded)


def counted_stream(count: int, file_bytes: int, keep_bytes: int) -> tuple[Stream, Counted]:
    nowhere = SampleRefs(np.zeros(1, np.int64), np.zeros(1, np.int64))
    empty = torch.zeros(1, 1, dtype=torch.int64)

    def source() -> Iterator[EncodedBatch]:
        for number in itertools.count():
            request = Request(nowhere, np.zeros((1, 3)), 0, number, part=number % 200)
            files = [np.zeros(file_bytes, np.uint8)]
            yield EncodedBatch(request, files, np.ones((1, 2)), [""], empty, empty[0])

    def finish(encoded: EncodedBatch, crops: torch.Tensor) -> ImageTextBatch:
        assert (crops == encoded.request.part).all()
        return ImageTextBatch(crops, empty, empty[0], 0, 0, nowhere.shard, nowhere.row)

    jobs = Jobs(source())
    decoder = Counted(jobs)
    return Stream(jobs, decoder, count, keep_bytes, finish, lambda skipped: None), decoder


def held(stream: Stream) -> tuple[int, int]:
    """Bytes of crops, and of files."""
    parts = [*stream._current, *stream._ahead]
    crops = sum(part.crops.nbytes for part in parts if part.crops is not None)
    return crops, sum(image.nbytes for part in parts for image in part.encoded.images)


CROP = 800  # bytes of the crop above, which is int64


@pytest.mark.parametrize("count", [2, 3, 8, 40])
@pytest.mark.parametrize("kept", [0, 1, 5, 40])
def test_what_is_held_stays_within_a_share_and_few_micro_batches_more(count, kept):
    small = 10
    stream, decoder = counted_stream(count, small, kept * CROP)
    for _ in range(5):
        parts = stream.next_batch().parts(count, passes=2)
        for m in [*range(count), *range(count)]:
            parts[m]
            crops, files = held(stream)
            # Those on their way to and fro; at most a share beside them.
            assert crops <= (min(kept, count) + 5) * CROP
            assert files <= (count - min(kept, count) + 5) * small
    if kept >= count:
        assert decoder.results <= 6 * count
    elif not kept:
        assert decoder.results >= 2 * 5 * count


def test_crops_that_are_smaller_than_their_files_are_kept_whatever_the_bound():
    stream, decoder = counted_stream(8, 10 * CROP, 0)
    for _ in range(3):
        parts = stream.next_batch().parts(8, passes=2)
        for m in [*range(8), *range(8)]:
            parts[m]
        assert held(stream)[1] == 0
    assert decoder.results <= 4 * 8
    # Ahead of the next first pass too.
    before = decoder.results
    list(stream.next_batch().parts(8, passes=2))
    assert decoder.results == before


def test_the_second_pass_decodes_the_next_batch_ahead():
    stream, decoder = counted_stream(8, 10, 1 << 20)
    for _ in range(3):
        parts = stream.next_batch().parts(8, passes=2)
        list(parts)
        before = decoder.results
        for m in range(8):
            parts[m]
            assert decoder.results == before + m + 1
    before = decoder.results
    list(stream.next_batch().parts(8, passes=2))
    # All were decoded: the first pass waits for none.
    assert decoder.results == before


@pytest.mark.gpu
@pytest.mark.parametrize("keep_bytes", [1 << 30, 2 * PART_BYTES, 0])
def test_both_passes_on_a_gpu_have_the_same_pixels_wherever_they_were_kept(keep_bytes):
    loader = TrainLoader("sample", SIZE, 16, micro_batch=4, keep_bytes=keep_bytes, device="cuda:0")
    for parts in both_passes(loader, 5, 4):
        assert {part.images.device.type for part in parts} == {"cuda"}


def test_a_second_decoding_is_asked_for_beyond_the_bound_alone(monkeypatch):
    wanted = []
    want = stream.Jobs.want
    monkeypatch.setattr(
        stream.Jobs, "want", lambda jobs, part: (wanted.append(part), want(jobs, part))
    )
    for keep_bytes, again in ((1 << 30, 0), (2 * PART_BYTES, 3 * 2), (0, 3 * 4)):
        wanted.clear()
        loader = TrainLoader("sample", SIZE, 16, micro_batch=4, keep_bytes=keep_bytes)
        list(both_passes(loader, 3, 4))
        assert len(wanted) == again

"""Pairs of a picture and its distortion: ranges, determinism, the order and state of loaders."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from clipfast.data import TrainLoader
from clipfast.data.pairs import EvalPairLoader, TrainPairLoader, distortions, squashed, two_views
from clipfast.data.pairs.margins import without_margins
from clipfast.data.pixels import normalised
from clipfast.data.shardwriter import ShardWriter

STEPS = ("crop", "zoom_out", "rescale", "rotate", "jitter", "jpeg")


def picture(seed: int = 0, size: tuple[int, int] = (61, 47)) -> Image.Image:
    """Smooth colours, as pictures have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def shards(folder, count: int, broken: tuple[int, ...] = ()) -> str:
    """Two shards of pictures of many sizes; those of some rows end in the middle."""
    writer = ShardWriter(str(folder), (count + 1) // 2)
    for i in range(count):
        file = io.BytesIO()
        picture(i, (40 + 3 * i, 50 - i)).save(file, "JPEG", quality=95)
        data = file.getvalue()
        writer.add(data[: len(data) * 9 // 10] if i in broken else data, "jpg", b"a picture")
    writer.finish()
    return f"{folder}/*.tar"


def take(loader, count: int) -> list:
    return list(itertools.islice(iter(loader), count))


@pytest.mark.parametrize("name", STEPS)
def test_distortions_repeat_themselves_and_stay_in_their_range(name):
    step = getattr(distortions, name)
    for seed in range(20):
        image = picture(seed, (90 + seed, 33))
        one, again = (step(image, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(np.asarray(one), np.asarray(again))
        assert one.mode == "RGB"
        width, height = np.array(one.size) / image.size
        if name == "crop":
            assert 0.5 * distortions.LEAST_AREA < width * height <= 1.02
        elif name == "zoom_out":
            most = 1 + distortions.MOST_MARGIN
            assert 1 <= width <= most + 0.02
            assert 1 <= height <= most + 0.02
            # The picture is in it, whole.
            spot = np.asarray(image)[16, 45]
            assert (np.abs(np.asarray(one).astype(int) - spot).max(axis=2) == 0).any()
        elif name == "rescale":
            low, high = distortions.SIDES
            assert low * 0.9 <= max(one.size) <= high * 1.15
            assert abs(np.log(width / height)) < distortions.MOST_ASPECT + 0.2
        elif name == "rotate":
            assert 1 <= width < 1.2
            assert 1 <= height < 1.6
        else:
            assert one.size == image.size
            assert np.abs(np.asarray(one).astype(int) - np.asarray(image)).mean() < 60


def test_distortions_of_other_seeds_differ_and_a_tiny_picture_lives():
    views = [two_views(picture(), 32, np.random.default_rng(seed)) for seed in range(8)]
    assert len({view[1].tobytes() for view in views}) == 8
    assert len({view[0].tobytes() for view in views}) == 1
    for seed in range(20):
        view = two_views(picture(1, (1, 3)), 16, np.random.default_rng(seed))
        assert view.shape == (2, 16, 16, 3)


def test_squashed_leaves_frame_and_paper_out():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 200, (40, 50, 3), dtype=np.uint8))
    bare = image.resize((200, 160), Image.Resampling.NEAREST)
    paper = ImageOps.expand(bare, (30, 12, 50, 70), "white")
    framed = ImageOps.expand(paper, 9, (20, 90, 200))
    assert without_margins(bare) is bare
    for margined in (paper, framed):
        found = without_margins(margined)
        assert np.abs(np.array(found.size) - bare.size).max() <= 6
        # To the pixels that margins are looked for in.
        assert np.abs(squashed(found, 8).astype(int) - squashed(bare, 8)).mean() < 8


def test_margins_within_margins_and_what_a_resize_leaves_of_a_frame_are_cut_off():
    rng = np.random.default_rng(0)
    bare = Image.fromarray(rng.integers(0, 200, (40, 50, 3), dtype=np.uint8))
    bare = bare.resize((200, 160), Image.Resampling.NEAREST)
    paper = ImageOps.expand(bare, (30, 12, 50, 70), "white")
    for thick in (7, 10, 13):
        # Of a frame that ends between two of the pixels looked at, one row is half of it.
        framed = ImageOps.expand(paper, thick, (20, 90, 200))
        shown = ImageOps.expand(framed, (11, 31, 11, 11), (90, 90, 110))
        for margined in (framed, shown, shown.resize((213, 190), Image.Resampling.BILINEAR)):
            left = np.array(without_margins(margined).size, float)
            if margined is not framed:
                left *= np.array(shown.size) / margined.size
            assert np.abs(left - bare.size).max() <= 9


def test_margins_of_an_empty_picture_and_of_a_dot_stay():
    for image in (Image.new("RGB", (50, 40), "teal"), Image.new("RGB", (1, 1))):
        assert without_margins(image) is image
    dotted = Image.new("RGB", (300, 200), "white")
    dotted.paste((200, 0, 0), (100, 100, 110, 110))
    assert without_margins(dotted) is dotted


def test_pair_loader_gives_the_order_of_other_loaders_and_the_same_bits_on_any_threads(tmp_path):
    found = shards(tmp_path, 13)
    plain = take(TrainLoader(found, 16, 4, seed=3), 7)
    for threads in (1, 3):
        pairs = take(TrainPairLoader(found, 16, 4, seed=3, threads=threads), 7)
        for batch, other in zip(pairs, plain, strict=True):
            assert np.array_equal(batch.row, other.row)
            assert np.array_equal(batch.shard, other.shard)
            assert batch.tokens.shape == batch.images.shape == (4, 3, 16, 16)
            assert torch.equal(batch.lengths, torch.ones(4, dtype=torch.int64))
        if threads == 1:
            first = pairs
    for one, other in zip(first, pairs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tokens, other.tokens)
    # Another epoch distorts otherwise, and leaves the picture as it is.
    seen = {(s, r): i for i, (s, r) in enumerate(zip(first[0].shard, first[0].row, strict=True))}
    later = [(b, j) for b in first[3:] for j in range(4) if (b.shard[j], b.row[j]) in seen]
    assert later
    for batch, j in later:
        i = seen[batch.shard[j], batch.row[j]]
        assert torch.equal(batch.images[j], first[0].images[i])
        assert not torch.equal(batch.tokens[j], first[0].tokens[i])


def test_pair_loader_views_are_the_picture_and_its_distortion(tmp_path):
    (batch,) = take(TrainPairLoader(shards(tmp_path, 5), 24, 5, shuffle=False), 1)
    file = io.BytesIO()
    picture(2, (46, 48)).save(file, "JPEG", quality=95)
    expected = squashed(Image.open(file).convert("RGB"), 24)
    pixels = normalised(torch.from_numpy(expected.copy())[None], torch.float32)
    torch.testing.assert_close(batch.images[2:3], pixels)
    # The distortion is nearer to its own picture than to the others.
    flat, distorted = batch.images.flatten(1), batch.tokens.flatten(1)
    distances = torch.cdist(distorted, flat)
    assert (distances.argmin(dim=1) == torch.arange(5)).sum() >= 4


def test_pair_loader_resumes_in_mid_epoch_on_other_ranks_in_micro_batches(tmp_path):
    found = shards(tmp_path, 17)
    whole = take(TrainPairLoader(found, 16, 4, seed=5), 9)
    loader = TrainPairLoader(found, 16, 4, seed=5)
    take(loader, 5)
    state = loader.state_dict()
    for rank in range(2):
        resumed = TrainPairLoader(found, 16, 4, seed=5, rank=rank, world_size=2, micro_batch=1)
        resumed.load_state_dict(state)
        mine = slice(2 * rank, 2 * rank + 2)
        batches = iter(resumed)
        for expected in whole[5:]:
            parts = next(batches).parts(2, passes=2)
            for _ in range(2):  # asked for again, they are the same
                seen = list(parts)
                assert torch.equal(torch.cat([p.tokens for p in seen]), expected.tokens[mine])
                assert torch.equal(torch.cat([p.images for p in seen]), expected.images[mine])
        batches.close()


def test_pair_loader_decodes_again_to_the_same_bits_where_nothing_is_kept(tmp_path):
    found = shards(tmp_path, 8)
    (whole,) = take(TrainPairLoader(found, 64, 8), 1)
    loader = TrainPairLoader(found, 64, 8, micro_batch=2, keep_bytes=0)
    batches = iter(loader)
    parts = next(batches).parts(4, passes=2)
    for _ in range(2):
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    batches.close()


def test_pair_loader_leaves_broken_pictures_out_or_names_them(tmp_path):
    found = shards(tmp_path, 12, broken=(3, 7))
    with pytest.raises(ValueError, match=r"sample '00000000\d' of shard .*does not decode"):
        take(TrainPairLoader(found, 16, 4), 3)
    skipped = []
    loader = TrainPairLoader(found, 16, 4, on_error="skip", on_skip=skipped.append, threads=2)
    batches = take(loader, 6)
    assert {s.key for s in skipped} == {"000000003", "000000007"}
    rows = [(s, r) for b in batches for s, r in zip(b.shard, b.row, strict=True)]
    assert not {(0, 3), (1, 1)} & set(rows)


def test_eval_pair_loader_covers_all_once_and_repeats_itself(tmp_path):
    found = shards(tmp_path, 7)
    one, other = (list(EvalPairLoader(found, 16, 3)) for _ in range(2))
    assert [len(batch.images) for batch in one] == [3, 3, 1]
    for batch, again in zip(one, other, strict=True):
        assert torch.equal(batch.tokens, again.tokens)
        # Equal pictures match, and captions, all of which are equal here, say nothing.
        assert torch.equal(batch.content[:, 0], batch.content[:, 1])

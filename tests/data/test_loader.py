"""Loaders on real shards: pixels against Pillow, one visit a sample, resume, broken images."""

import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import clipfast.data
from clipfast.data import EvalLoader, ImageTextBatch, TrainLoader, decode
from clipfast.preprocessing import MEAN, STD

SIZE = 32


def picture(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A smooth picture whose transparent part hides another colour."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    wave = 100 * np.sin(x / 9) * np.cos(y / 7) + 128
    rgb = Image.fromarray(np.stack([x * 4, y * 6, wave], -1).astype(np.uint8))
    if "A" not in mode:
        return rgb.convert(mode)
    alpha = np.where(y < size[1] // 2, 0, 128 + x).astype(np.uint8)
    rgb.putalpha(Image.fromarray(alpha))
    return rgb.convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def write_shard(path: Path, samples: list[tuple[str, bytes, str]]) -> str:
    with tarfile.open(path, "w") as tar:
        for number, (extension, image, caption) in enumerate(samples):
            for suffix, data in ((extension, image), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def expected_pixels(data: bytes) -> np.ndarray:
    """What Pillow makes of an image: oriented, on white, centre square, bicubic."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


KINDS = {
    "jpeg": ("jpg", lambda: encoded(picture(), "JPEG", quality=95)),
    "progressive": ("jpg", lambda: encoded(picture(), "JPEG", quality=95, progressive=True)),
    "grey jpeg": ("jpg", lambda: encoded(picture("L"), "JPEG", quality=95)),
    "cmyk": ("jpg", lambda: encoded(picture("CMYK"), "JPEG", quality=95)),
    "exif jpeg": ("jpg", lambda: encoded(picture(), "JPEG", quality=95, exif=rotated_exif())),
    "png": ("png", lambda: encoded(picture(), "PNG")),
    "grey png": ("png", lambda: encoded(picture("L"), "PNG")),
    "palette": ("png", lambda: encoded(picture().quantize(16), "PNG")),
    "palette with alpha": ("png", lambda: encoded(picture().quantize(16), "PNG", transparency=3)),
    "rgba": ("png", lambda: encoded(picture("RGBA"), "PNG")),
    "la": ("png", lambda: encoded(picture("LA"), "PNG")),
    "exif png": ("png", lambda: encoded(picture(), "PNG", exif=rotated_exif())),
    "webp": ("webp", lambda: encoded(picture(), "WEBP", quality=95)),
    "lossless webp": ("webp", lambda: encoded(picture(), "WEBP", lossless=True)),
    "webp with alpha": ("webp", lambda: encoded(picture("RGBA"), "WEBP", lossless=True)),
    "lossy webp with alpha": ("webp", lambda: encoded(picture("RGBA"), "WEBP", quality=90)),
}


def test_eval_loader_decodes_every_kind_of_image_as_pillow_does(tmp_path):
    data = {name: (extension, make()) for name, (extension, make) in KINDS.items()}
    shard = write_shard(
        tmp_path / "kinds.tar", [(ext, image, name) for name, (ext, image) in data.items()]
    )
    batch = next(iter(EvalLoader(shard, SIZE, 64)))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.shape == (len(KINDS), 3, SIZE, SIZE)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    pixels = ((batch.images.permute(0, 2, 3, 1) * std + mean) * 255).numpy()
    for row, (name, (_, image)) in enumerate(data.items()):
        difference = np.abs(pixels[row] - expected_pixels(image))
        assert difference.mean() < 0.6, (name, difference.mean())
        assert difference.max() < 10, (name, difference.max())


def test_loaders_resize_with_dali_where_the_extension_is_absent(tmp_path, monkeypatch):
    sizes = ((60, 40), (200, 90), (20, 33))
    samples = [("jpg", encoded(picture(size=size), "JPEG"), "a caption") for size in sizes]
    shard = write_shard(tmp_path / "0.tar", samples)
    ours = next(iter(TrainLoader(shard, SIZE, 3, dtype=torch.bfloat16))).images
    monkeypatch.setattr(decode, "is_compiled", lambda: False)
    dalis = next(iter(TrainLoader(shard, SIZE, 3, dtype=torch.bfloat16))).images
    assert ours.dtype == dalis.dtype == torch.bfloat16
    assert ours.stride() == dalis.stride()
    # A level is 0.015; bfloat16 has steps of 0.016 at the far end.
    assert (ours.float() - dalis.float()).abs().mean() < 0.008


def test_train_loader_gives_the_same_bits_on_any_number_of_threads(tmp_path):
    sizes = [(60 + 7 * i, 40 + 11 * (i % 3)) for i in range(13)]
    samples = [("jpg", encoded(picture(size=size), "JPEG"), "a caption") for size in sizes]
    shard = write_shard(tmp_path / "0.tar", samples)
    one, three = (next(iter(TrainLoader(shard, SIZE, 13, threads=n))).images for n in (1, 3))
    assert torch.equal(one, three)


def numbered_shards(folder: Path, sizes: list[int]) -> list[str]:
    image = encoded(picture(size=(8, 8)), "PNG")
    return [
        write_shard(folder / f"{i}.tar", [("png", image, f"shard {i} row {r}") for r in range(n)])
        for i, n in enumerate(sizes)
    ]


def places(batch) -> list[tuple[int, int]]:
    return list(zip(batch.shard.tolist(), batch.row.tolist(), strict=True))


def take(loader, steps: int) -> list:
    return list(itertools.islice(loader, steps))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_train_loader_visits_each_sample_once_over_all_ranks(tmp_path, world_size):
    shards = numbered_shards(tmp_path, [5, 17, 1, 9])
    batch_size = 6
    loaders = [
        TrainLoader(shards, 8, batch_size, rank=rank, world_size=world_size, seed=1)
        for rank in range(world_size)
    ]
    steps = loaders[0].batches_per_epoch
    assert steps == 32 // batch_size
    streams = [take(loader, 2 * steps) for loader in loaders]
    epochs = []
    for epoch in range(2):
        batches = [b for s in streams for b in s[epoch * steps : (epoch + 1) * steps]]
        assert {b.epoch for b in batches} == {epoch}
        visits = Counter(p for b in batches for p in places(b))
        assert max(visits.values()) == 1
        assert len(visits) == steps * batch_size
        epochs.append([places(b) for b in batches])
    assert epochs[0] != epochs[1]


def test_train_loader_global_batch_does_not_depend_on_the_ranks(tmp_path):
    shards = numbered_shards(tmp_path, [5, 17, 1, 9])
    whole = take(TrainLoader(shards, 8, 6, seed=1), 4)
    halves = [take(TrainLoader(shards, 8, 6, seed=1, rank=r, world_size=2), 4) for r in (0, 1)]
    for one, left, right in zip(whole, *halves, strict=True):
        assert places(one) == places(left) + places(right)
        assert torch.equal(one.images, torch.cat([left.images, right.images]))


def test_train_loader_resumes_in_mid_epoch_on_other_ranks(tmp_path):
    shards = numbered_shards(tmp_path, [5, 17, 1, 9])
    uninterrupted = take(TrainLoader(shards, 8, 4, seed=2), 12)
    first = TrainLoader(shards, 8, 4, seed=2)
    take(first, 10)
    state = first.state_dict()
    resumed = []
    for rank in range(2):
        loader = TrainLoader(shards, 8, 4, seed=2, rank=rank, world_size=2)
        loader.load_state_dict(state)
        resumed.append(take(loader, 2))
    for one, left, right in zip(uninterrupted[10:], *resumed, strict=True):
        assert places(one) == places(left) + places(right)
        assert (one.epoch, one.index) == (left.epoch, left.index)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"window": 5}, "window"),
        ({"batch_size": 2}, "batch_size"),
    ],
)
def test_train_loader_refuses_a_position_of_another_run(tmp_path, options, words):
    shards = numbered_shards(tmp_path, [9])
    state = TrainLoader(shards, 8, 4).state_dict()
    other = TrainLoader(shards, 8, **{"batch_size": 4, **options})
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="samples was 9, is 6"):
        TrainLoader(numbered_shards(tmp_path, [6]), 8, 4).load_state_dict(state)


def test_train_loader_says_what_to_do_when_the_data_is_too_small(tmp_path):
    with pytest.raises(ValueError, match=r"hold 9 samples, less than one global batch of 10"):
        TrainLoader(numbered_shards(tmp_path, [9]), 8, 10)


def test_train_loader_cuts_tokens_to_the_longest_caption(tmp_path):
    image = encoded(picture(size=(8, 8)), "PNG")
    shard = write_shard(tmp_path / "a.tar", [("png", image, "a"), ("png", image, "a b c")])
    batch = next(iter(TrainLoader(shard, 8, 2)))
    assert batch.tokens.shape == (2, 5)
    assert sorted(batch.lengths.tolist()) == [3, 5]
    assert torch.equal(batch.tokens.argmax(1) + 1, batch.lengths)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_train_loader_names_the_broken_image_and_the_remedy(tmp_path, extension):
    form = {"jpg": "JPEG", "png": "PNG"}[extension]
    good = encoded(picture(), form)
    broken = encoded(picture("RGBA" if extension == "png" else "RGB", (200, 200)), form)[:-900]
    samples = [(extension, good, "fine")] * 6 + [(extension, broken, "broken")]
    shard = write_shard(tmp_path / "bad.tar", samples)
    with pytest.raises(ValueError, match=r"clipfast\.data\.index") as error:
        take(TrainLoader(shard, SIZE, 7), 1)
    assert "'000006'" in str(error.value)
    assert "bad.tar" in str(error.value)


def test_eval_loader_parts_cover_all_samples_once(tmp_path):
    shards = numbered_shards(tmp_path, [5, 6])
    seen = []
    for rank in range(3):
        loader = EvalLoader(shards, 8, 2, rank=rank, world_size=3)
        batches = list(loader)
        assert sum(len(b.tokens) for b in batches) == len(loader)
        seen += [p for b in batches for p in places(b)]
    assert seen == [(0, r) for r in range(5)] + [(1, r) for r in range(6)]
    assert len(EvalLoader(shards, 8, 2, limit=4)) == 4


def test_eval_loader_says_which_pictures_and_captions_are_the_same(tmp_path):
    red, blue = (encoded(Image.new("RGB", (9, 9), name), "PNG") for name in ("red", "blue"))
    samples = [
        ("A  Dog", red),
        ("a dog ", blue),
        ("a cat", red),
        ("a &amp; b", red),
        ("A & B", red),
    ]
    shard = write_shard(tmp_path / "0.tar", [("png", image, text) for text, image in samples])
    content = torch.cat([batch.content for batch in EvalLoader(shard, SIZE, 2)])
    assert content.shape == (5, 2)
    assert content.dtype == torch.int64
    groups = [content[:, column].unique(return_inverse=True)[1] for column in (0, 1)]
    assert [(group == group[0]).tolist() for group in groups] == [
        [True, False, True, True, True],
        [True, True, False, False, False],
    ]
    assert groups[1][3] == groups[1][4] != groups[1][2]
    (batch,) = itertools.islice(TrainLoader(shard, SIZE, 5), 1)
    assert batch.content is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_eval_loader_on_a_gpu_equals_the_cpu(tmp_path, dtype):
    data = [(ext, make(), name) for name, (ext, make) in KINDS.items()]
    shard = write_shard(tmp_path / "kinds.tar", data)
    cpu = next(iter(EvalLoader(shard, SIZE, 64)))
    gpu = next(iter(EvalLoader(shard, SIZE, 64, device="cuda:0", dtype=dtype)))
    assert gpu.images.device.type == "cuda"
    assert gpu.images.dtype == dtype
    assert gpu.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(gpu.tokens.cpu(), cpu.tokens)
    # JPEG hardware and libjpeg differ by a level or two; one level is 0.015 after normalisation.
    assert (gpu.images.float().cpu() - cpu.images).abs().mean() < 0.05


@pytest.mark.gpu
def test_train_loader_on_a_gpu_does_not_overwrite_batches_in_use(tmp_path):
    shards = numbered_shards(tmp_path, [40])
    loader = TrainLoader(shards, 8, 4, device="cuda:0", shuffle=False, scale=(1.0, 1.0))
    batches = take(loader, 8)
    first = batches[0].images[:1]
    for batch in batches:
        assert torch.equal(batch.images, first.expand_as(batch.images))


def test_batch_keeps_its_old_name_for_one_release():
    with pytest.warns(DeprecationWarning, match="called ImageTextBatch"):
        assert clipfast.data.Batch is ImageTextBatch


def test_train_loader_knows_its_data_from_others_of_the_same_size_wherever_they_lie(tmp_path):
    for name, color in (("here", 10), ("there", 10), ("others", 200)):
        (tmp_path / name).mkdir()
        image = encoded(Image.new("RGB", (8, 8), (color, 0, 0)), "PNG")
        for shard in range(40):
            write_shard(tmp_path / name / f"{shard}.tar", [("png", image, "a caption")] * 2)
    here, there, others = (
        TrainLoader([str(tmp_path / name / "{0..39}.tar")], 8, 4)
        for name in ("here", "there", "others")
    )
    there.load_state_dict(here.state_dict())
    with pytest.raises(ValueError, match=r"shards was [0-9a-f]{16}, is [0-9a-f]{16}"):
        others.load_state_dict(here.state_dict())
    fewer = TrainLoader([str(tmp_path / "here" / "{1..39}.tar")], 8, 4)
    assert fewer.state_dict()["shards"] != here.state_dict()["shards"]


def test_train_loader_resumes_from_a_state_of_version_0_1(tmp_path):
    shards = numbered_shards(tmp_path, [5, 17, 1, 9])
    uninterrupted = take(TrainLoader(shards, 8, 4, seed=2), 12)
    loader = TrainLoader(shards, 8, 4, seed=2)
    saved = {"epoch": 1, "index": 2, "samples": 32, "batch_size": 4, "seed": 2, "window": 262144}
    loader.load_state_dict(saved)
    state = loader.state_dict()
    assert len(state.pop("shards")) == 16
    assert state == saved
    for resumed, expected in zip(take(loader, 2), uninterrupted[10:], strict=True):
        assert places(resumed) == places(expected)
        assert torch.equal(resumed.images, expected.images)

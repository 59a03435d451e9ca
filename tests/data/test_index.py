"""clipfast.data.index: what is rejected and why, and that DALI's own reader takes the index."""

import io
import os
import re
import struct
import sys
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from clipfast.data import TrainLoader, check, index, shards
from clipfast.data.workers import make_executor
from tests.needs import need

Y, X = np.mgrid[0:48, 0:64]
RGB = np.stack([X * 4, Y * 5, (X + Y) * 2], -1).astype(np.uint8)
IMAGE = Image.fromarray(RGB)


def encode(image: Image.Image = IMAGE, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, data: bytes) -> bytes:
    """A PNG written by hand: 16-bit RGB and impossible sizes, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


RGB16 = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in RGB)
ALPHA = IMAGE.copy()
ALPHA.putalpha(Image.fromarray((X * 4).astype(np.uint8)))
JPEG = encode(quality=90)
CAPTION = b"a gradient"

GOOD = {
    "jpeg": ("jpg", JPEG, CAPTION),
    "upper": ("JPEG", JPEG, "\ufeffété 東京".encode()),
    "progressive": ("jpg", encode(progressive=True), CAPTION),
    "grey": ("jpg", encode(IMAGE.convert("L")), CAPTION),
    "cmyk": ("jpg", encode(IMAGE.convert("CMYK")), CAPTION),
    "png": ("png", encode(kind="PNG"), CAPTION),
    "grey16": ("png", encode(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG"), CAPTION),
    "rgb16": ("png", png(64, 48, 16, RGB16), CAPTION),
    "palette": ("png", encode(IMAGE.quantize(32), "PNG", transparency=3), CAPTION),
    "la": ("png", encode(ALPHA.convert("LA"), "PNG"), CAPTION),
    "rgba": ("png", encode(ALPHA, "PNG"), CAPTION),
    "webp": ("webp", encode(kind="WEBP"), CAPTION),
    "animated": ("webp", encode(kind="WEBP", save_all=True, append_images=[ALPHA]), CAPTION),
    "wrong_name": ("jpg", encode(kind="PNG"), CAPTION),
}
BAD = {
    "half": ("jpg", JPEG[: len(JPEG) // 2], CAPTION, "image is (broken|not readable)"),
    "cut": ("jpg", JPEG[:-20], CAPTION, "truncated"),
    "cut_png": ("png", encode(kind="PNG")[:-40], CAPTION, "truncated"),
    "cut_webp": ("webp", encode(kind="WEBP")[:-40], CAPTION, "image is"),
    "text": ("jpg", b"this is a text file", CAPTION, "no format that is read .* b'this is "),
    "html": ("jpg", b"<!DOCTYPE html><html>404", CAPTION, "HTML page"),
    "cut_gif": ("jpg", encode(IMAGE.quantize(8), "GIF")[:-99], CAPTION, "image is broken"),
    "nothing": ("jpg", b"", CAPTION, "image has 0 bytes"),
    "pixel": ("png", encode(Image.new("RGB", (1, 1)), "PNG"), CAPTION, "1 x 1 pixels: a side"),
    "strip": ("png", encode(Image.new("RGB", (4, 999)), "PNG"), CAPTION, "differ more than 32"),
    "bomb": ("png", png(60000, 60000, 8, b"\0" * 99), CAPTION, "decompression bomb"),
    "zero": ("png", png(0, 5, 8, b""), CAPTION, "image"),
    "empty": ("jpg", JPEG, b" \n\t", "caption is empty"),
    "no_caption_bytes": ("jpg", JPEG, b"", "caption is empty"),
    "latin": ("jpg", JPEG, "été".encode("latin-1"), r"not UTF-8 \(byte 0\)"),
    "both": ("jpg", b"x", b"", "image is of no format.*; caption is empty"),
}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_shard(path, samples) -> str:
    with tarfile.open(path, "w") as tar:
        for key, (extension, image, caption, *_) in samples.items():
            if image is not None:
                add(tar, f"{key}.{extension}", image)
            if caption is not None:
                add(tar, f"{key}.txt", caption)
            add(tar, f"{key}.json", b"{}")
    return str(path)


def rows(report: str) -> dict[str, str]:
    with open(report, encoding="utf-8") as file:
        assert file.readline() == "shard\tkey\treason\n"
        return {line.split("\t")[1]: line.rstrip("\n").split("\t")[2] for line in file}


@pytest.fixture
def mixed(tmp_path):
    """Good and bad samples in turn."""
    pool = {**GOOD, **BAD, "lonely": ("jpg", JPEG, None), "words": ("jpg", None, CAPTION)}
    order = np.random.default_rng(0).permutation(len(pool))
    keys = [list(pool)[i] for i in order]
    path = make_shard(tmp_path / "mixed.tar", {key: pool[key] for key in keys})
    return path, [key for key in keys if key in GOOD]


def test_index_keeps_good_samples_and_reports_the_others(mixed, monkeypatch):
    path, good = mixed
    # Another library may have switched this on; a half image must not pass because of it.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    summary = index.index_shards([path], workers=1)
    assert shards.read_table(path).keys() == good
    reasons = rows(summary.report)
    assert set(reasons) == {*BAD, "lonely", "words"}
    for key, (*_, message) in BAD.items():
        assert re.search(message, reasons[key]), (key, reasons[key])
    assert "no caption" in reasons["lonely"]
    assert "no image" in reasons["words"]
    assert (summary.samples, summary.good, summary.failed) == (
        len(BAD) + len(GOOD) + 2,
        len(good),
        0,
    )


def test_dalis_reader_takes_the_index_and_yields_the_good_samples(mixed):
    from nvidia import dali

    path, good = mixed
    index.index_shards([path], workers=1)

    @dali.pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def pipeline():
        image, caption = dali.fn.readers.webdataset(
            paths=[path],
            index_paths=[shards.index_path(path)],
            ext=["jpg;jpeg;png;webp", "txt"],
            missing_component_behavior="error",
            name="reader",
        )
        return dali.fn.decoders.image(image, device="cpu"), caption, dali.fn.copy(image)

    pipe = pipeline()
    pipe.build()
    assert pipe.reader_meta("reader")["epoch_size"] == len(good)
    seen = []
    while len(seen) < len(good):
        pixels, captions, encoded = pipe.run()
        for i in range(4):
            assert pixels.at(i).shape == (48, 64, 3)
            seen.append((bytes(encoded.at(i)), bytes(captions.at(i))))
    assert seen[: len(good)] == [GOOD[key][1:] for key in good]


def test_dali_decides_when_pillow_accepts(monkeypatch):
    need("nvidia.dali")
    # Handed over as they are, which training does not do.
    monkeypatch.setattr(check, "prepare", lambda data: np.frombuffer(data, np.uint8))
    gif = encode(IMAGE.quantize(8), "GIF")
    images = [JPEG, gif, JPEG, gif, gif, GOOD["png"][1]]
    assert check.check_images(images, dali=False) == [""] * 6
    reasons = check.check_images(images)
    assert [bool(reason) for reason in reasons] == [False, True, False, True, True, False]
    assert reasons[1] == "image is refused by DALI: unsupported format"


def test_pngs_that_pillow_reads_and_dali_would_not_are_fit():
    whole = GOOD["png"][1]
    without_end = whole[:-12]
    bad_sum = whole[:-16] + bytes(4) + whole[-12:]
    images = [whole, without_end, JPEG, bad_sum, encode(IMAGE.quantize(8), "GIF")]
    assert check.check_images(images) == [""] * 5
    assert [check.check_header(data, check.Limits()) for data in images] == [""] * 5


def test_index_of_several_shards_with_processes_equals_one_worker(mixed, tmp_path):
    path, good = mixed
    (tmp_path / "other").mkdir()
    other = make_shard(tmp_path / "other" / "o.tar", {f"{i:03d}": GOOD["jpeg"] for i in range(300)})
    index.index_shards([path, other], workers=1)
    alone = [open(shards.index_path(p), "rb").read() for p in (path, other)]  # noqa: SIM115
    summary = index.index_shards([path, other], workers=2, force=True)
    again = [open(shards.index_path(p), "rb").read() for p in (path, other)]  # noqa: SIM115
    assert alone == again
    assert summary.good == len(good) + 300


def test_index_is_idempotent_and_keeps_old_rows(mixed, tmp_path):
    path, good = mixed
    first = index.index_shards([path], workers=1)
    stamp = os.stat(shards.index_path(path)).st_mtime_ns
    again = index.index_shards([path], workers=1)
    assert (again.shards, again.skipped, again.already_good) == (0, 1, len(good))
    assert again.report is None
    assert os.stat(shards.index_path(path)).st_mtime_ns == stamp
    other = make_shard(tmp_path / "new.tar", {"fine": GOOD["jpeg"], "worse": BAD["text"]})
    added = index.index_shards([path, other], workers=1)
    assert (added.shards, added.skipped) == (1, 1)
    assert set(rows(first.report)) == {*BAD, "lonely", "words", "worse"}
    os.utime(path, ns=(stamp + 10**9, stamp + 10**9))
    assert index.index_shards([path, other], workers=1).shards == 1
    assert index.index_shards([path, other], workers=1, force=True).shards == 2
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]


def test_main_reports_unreadable_shards_and_goes_on(tmp_path, capsys):
    good = make_shard(tmp_path / "a.tar", {"x": GOOD["jpeg"]})
    (tmp_path / "b.tar").write_bytes(b"")
    whole = make_shard(tmp_path / "c.tar", {"x": GOOD["jpeg"], "y": GOOD["jpeg"]})
    with open(whole, "r+b") as file:
        file.truncate(3000)
    report = tmp_path / "why.tsv"
    status = index.main([f"{tmp_path}/*.tar", "--workers", "1", "--report", str(report)])
    out = capsys.readouterr()
    assert status == 1
    assert "2 shards are unreadable" in out.err
    assert "1 good" in out.out
    text = report.read_text()
    assert "zero-byte" in text
    assert "truncated" in text
    assert shards.count(good) == 1
    assert not shards.has_index(whole)


def test_main_without_a_good_sample_fails(tmp_path, capsys):
    path = make_shard(tmp_path / "a.tar", {"x": BAD["text"], "y": BAD["empty"]})
    for _ in range(2):
        assert index.main([path, "--workers", "1"]) == 1
        # The second run finds the shard up to date, and gives the reasons of the first.
        said = capsys.readouterr().err
        assert "no sample is good" in said
        assert re.search(r"1 x image .* \(x of .*a\.tar\)", said)
        assert re.search(r"1 x .* \(y of .*a\.tar\)", said)
    with pytest.raises(ValueError, match=r"hold 0 samples(.|\n)*1 x image .* \(x of .*a\.tar\)"):
        TrainLoader(path, 32, 2)
    # An index of nothing keeps the shard from being scanned and trained on unchecked.
    assert len(shards.read_table(path)) == 0
    assert index.main([str(tmp_path / "none*.tar")]) == 1
    assert "matched nothing" in capsys.readouterr().err


def test_limits_are_options(tmp_path):
    pixel = {"pixel": ("png", BAD["pixel"][1], CAPTION), "strip": ("png", BAD["strip"][1], CAPTION)}
    path = make_shard(tmp_path / "a.tar", pixel)
    assert index.main([path, "--workers", "1", "--min-side", "1", "--max-aspect", "400"]) == 0
    assert shards.count(path) == 2
    with pytest.raises(ValueError, match="at least 1"):
        check.Limits(min_side=0)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_read_only_folder_is_named():
    # Even root cannot write there.
    with pytest.raises(
        PermissionError, match=r"cannot write an index into /proc: .*link the shards"
    ):
        index._check_writable(["/proc"])


def test_workers_must_be_positive():
    with pytest.raises(ValueError, match="workers must be at least 1"):
        make_executor(0)

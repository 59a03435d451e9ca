"""Odd images: what goes to the decoder as it is, what Pillow reads for it, what is refused and why.

All oddities: tests/campaigns/images.py.
"""

import io
import random
import re

import numpy as np
import pytest
from PIL import Image

from clipfast.data.check import Limits, check_header, check_images
from clipfast.data.plain import plain_size
from clipfast.data.prepare import prepare
from clipfast.data.rgb import readable
from tests.campaigns.images_form import Made, picture, saved, tiff_orientation
from tests.campaigns.images_jpeg import jpegs
from tests.campaigns.images_other import others
from tests.campaigns.images_png import pngs
from tests.campaigns.images_webp import webps
from tests.campaigns.jpeg_writer import JFIF, Writer, exif, ycbcr

MADE = {
    f"{one.kind}: {one.name}": one
    for makers in (jpegs, pngs, webps, others)
    for one in makers(random.Random(0))
}


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), *((f, m) for f in ("PNG", "WEBP") for m in ("RGB", "L", "P"))],
)
@pytest.mark.parametrize("size", [(56, 40), (1, 7)])
def test_what_people_mostly_have_goes_to_the_decoder_as_it_is(form, mode, size):
    data = saved(picture(mode, size), form)
    assert plain_size(data) == size
    assert prepare(data).tobytes() == data


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"optimize": True},
        {"icc_profile": b"x" * 3000},
        {"comment": b"hello"},
        {"exif": b"Exif\0\0" + tiff_orientation(6)},
        {"exif": b"Exif\0\0" + tiff_orientation(3, ">")},
        {"restart_marker_rows": 1},
    ],
    ids=str,
)
def test_ordinary_jpegs_are_plain(options):
    assert plain_size(saved(picture(), "JPEG", **options)) == (56, 40)


@pytest.mark.parametrize(
    "name",
    [
        "JPEG, colours: CMYK, no marker",
        "JPEG, colours: RGB, JFIF and Adobe 0",
        "JPEG, segments: junk between segments",
        "JPEG, turned: as byte",
        "JPEG, turned: two blocks",
        "JPEG, turned: an entry beyond the end",
        "JPEG, turned: XMP attribute",
        "JPEG, coding: frame C9",
        "JPEG, damaged: tables missing",
        "PNG, depths: RGB, 16 bits",
        "PNG, tRNS: grey, 8 bits",
        "PNG, chunks: an empty IDAT in the middle",
        "PNG, chunks: wrong checksum of IDAT",
        "PNG, chunks: no IEND",
        "PNG, turned: eXIf 6 behind the pixels",
        "PNG, turned: raw profile of ImageMagick",
        "PNG, animated: no frame",
        "WebP, chunks: alpha without its flag",
        "WebP, turned: EXIF 6, with JPEG's header",
        "WebP: animated, first frame is a part",
        "other formats: GIF, animated",
    ],
)
def test_what_dali_misreads_or_refuses_reaches_it_as_pillow_reads_it(name):
    data = MADE[name].data
    assert plain_size(data) is None
    bitmap = Image.open(io.BytesIO(prepare(data).tobytes()))
    assert (bitmap.format, bitmap.mode) == ("BMP", "RGB")
    assert check_images([data]) == [""]


@pytest.mark.parametrize(
    "made",
    [one for one in MADE.values() if one.kind == "PNG, tRNS" and one.truth is not None],
    ids=lambda made: made.name,
)
def test_the_transparent_colour_of_a_png_is_the_standards(made: Made):
    # Pillow compares keys of 2, 4 and 16 bits with samples of 8.
    bitmap = np.asarray(Image.open(io.BytesIO(prepare(made.data).tobytes())))
    assert np.abs(bitmap - made.truth).max() < 2


@pytest.mark.parametrize(
    "made", [one for one in MADE.values() if one.refused and not one.either], ids=lambda m: m.name
)
def test_a_refusal_names_the_true_reason(made: Made):
    (reason,) = check_images([made.data])
    assert reason.startswith("image ")
    assert _matches(made.refused, reason)
    (without,) = check_images([made.data], dali=False)
    assert _matches(made.refused, without) or "pixels end after" in without


def _matches(pattern: str, reason: str) -> bool:
    return re.search(pattern, reason, re.IGNORECASE) is not None


def test_a_header_tells_a_size_that_is_refused_without_decoding():
    limits = Limits(min_side=8, max_aspect=4, max_pixels=3000)
    for form in ("JPEG", "PNG", "WEBP", "GIF"):
        for size, named in (((56, 40), ""), ((4, 9), "shorter"), ((60, 10), "sides differ")):
            reason = check_header(saved(picture(size=size), form), limits)
            assert (named in reason) if named else reason == ""
        assert "more than 3,000" in check_header(saved(picture(size=(80, 60)), form), limits)
    assert check_header(b"", limits) == "image has 0 bytes"
    assert "HTML" in check_header(b"<html>", limits)
    # Pixels are not looked at: a header is all that is there.
    assert check_header(saved(picture(), "PNG")[:50], limits) == ""


def test_pixels_that_end_early_are_found_without_dali_too():
    short = MADE["PNG, damaged: half of the rows"].data
    assert "pixels end after 3,380 of 6,760 bytes" in check_images([short], dali=False)[0]
    assert "pixels end after 3,380 of 6,760 bytes" in check_images([short])[0]


def test_an_orientation_beside_a_broken_block_does_not_cost_the_picture():
    data = Writer(segments=JFIF + exif(b"garbage")).write(ycbcr(np.asarray(picture())))
    assert check_images([data]) == [""]


def test_an_older_pillow_without_a_format_still_reads_the_others(monkeypatch):
    monkeypatch.delitem(Image.OPEN, "AVIF")
    readable.cache_clear()
    try:
        assert "AVIF" not in readable()
        gif, avif = MADE["other formats: GIF, RGB"].data, MADE["other formats: AVIF, RGB"].data
        first, second = check_images([gif, avif])
        assert first == ""
        assert "AVIF" in second
    finally:
        readable.cache_clear()


def test_webps_with_a_colour_profile_and_jpegs_that_xmp_leaves_upright_are_plain():
    assert plain_size(saved(picture(), "WEBP", icc_profile=b"x" * 999)) == (56, 40)
    assert plain_size(MADE["JPEG, turned: XMP 1"].data) == (56, 40)
    assert plain_size(MADE["JPEG, turned: XMP element"].data) is None

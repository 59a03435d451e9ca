"""Samples as other programs leave them: img2dataset's folder, names with dots, all images."""

import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
from PIL import Image, features

from clipfast.data import TrainLoader, folders, index, shards
from clipfast.data.fields import COMMON, IMAGES, Fields
from clipfast.data.patterns import expand
from clipfast.data.reader import ShardReader

# What Pillow writes, and under which names this is found.
FORMS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif", "avifs"),
    "JPEG2000": ("jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "ICO": ("ico",),
}


def picture(number: int, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (number % 256, 40, 200)).save(buffer, form)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def img2dataset(folder: Path, shard_count: int = 2, samples: int = 6, *, text: bool) -> list[str]:
    """A folder as img2dataset 1.47 leaves it: a failed download is a row of the Parquet alone.

    Args:
        folder: where to.
        shard_count: of tars.
        samples: of each, its failures among them.
        text: a caption column was named, so that each sample has a .txt too.

    Returns:
        Captions in order.
    """
    captions = []
    for shard in range(shard_count):
        members = {}
        for number in range(samples):
            key = f"{shard:05d}{number:04d}"
            if number == 2:
                continue
            captions.append(f"picture {shard} {number}")
            row = {"caption": captions[-1], "url": "http://host/x", "key": key, "status": "success"}
            members[f"{key}.jpg"] = picture(number)
            if text:
                members[f"{key}.txt"] = captions[-1].encode()
            members[f"{key}.json"] = json.dumps(row).encode()
        write_tar(folder / f"{shard:05d}.tar", members)
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return captions


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_folder_of_img2dataset_trains_as_it_is(tmp_path, text, indexed):
    captions = img2dataset(tmp_path, text=text)
    paths = expand(str(tmp_path))
    assert [Path(path).name for path in paths] == ["00000.tar", "00001.tar"]
    if indexed:
        assert index.main([str(tmp_path), "--workers", "1", "--no-dali"]) == 0
    loader = TrainLoader(f"{tmp_path}/", image_size=16, batch_size=10, threads=1)
    assert [len(shards.read_table(path)) for path in paths] == [5, 5]
    batch = next(iter(loader))
    seen = [
        loader.reader.caption(*place)
        for place in zip(batch.shard.tolist(), batch.row.tolist(), strict=True)
    ]
    assert sorted(seen) == sorted(captions)


def test_shards_of_img2dataset_that_are_not_finished_are_left_out_and_said(tmp_path, caplog):
    img2dataset(tmp_path, shard_count=3, text=False)
    (tmp_path / "00001_stats.json").unlink()
    (tmp_path / "more.tar").write_bytes((tmp_path / "00000.tar").read_bytes())
    with caplog.at_level(logging.WARNING):
        found = folders.tars_in(str(tmp_path))
    assert [Path(path).name for path in found] == ["00000.tar", "00002.tar", "more.tar"]
    assert "1 of 4 shards in" in caplog.text
    assert "such as 00001.tar" in caplog.text
    for path in tmp_path.glob("*_stats.json"):
        path.unlink()
    assert len(folders.tars_in(str(tmp_path))) == 4
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    with pytest.raises(ValueError, match=r"folder without \.tar files.*nothing/\*\*/\*\.tar"):
        expand(str(nothing))


def test_a_shard_of_texts_leaves_out_samples_that_have_a_json_alone(tmp_path):
    row = json.dumps({"caption": "in the json"}).encode()
    members = {"a.jpg": picture(0), "a.json": row, "b.jpg": picture(1), "b.json": row}
    alone = write_tar(tmp_path / "alone.tar", members)
    both = write_tar(tmp_path / "both.tar", {**members, "b.txt": b"a text"})
    assert shards.read_table(alone).keys() == ["a", "b"]
    assert shards.read_table(both).keys() == ["b"]
    assert ShardReader([alone, both]).caption(1, 0) == "a text"
    assert ShardReader([both], fields=Fields(captions=("json:caption",))).caption(0, 1) != "a text"
    assert [sample.problem for sample in shards.scan(both)][:1] == [
        "no caption: expected a txt member, found .jpg, .json"
    ]


DOTTED = {
    "one.two.jpg": "one.two", "folder v1.0/a b.c d.JPG": "folder v1.0/a b.c d",
    "x.y/plain.png": "x.y/plain", "2.jpg": "2", "3.14.15.jpg": "3.14.15",
}  # fmt: skip


@pytest.mark.parametrize("indexed", [True, False])
def test_keys_with_dots_spaces_and_folders_are_read_and_indexed(tmp_path, indexed):
    members = {}
    for number, (name, key) in enumerate(DOTTED.items()):
        members[name] = picture(number)
        members[f"{key}.txt"] = key.encode()
    # One first part, and image and text of each second part.
    for part in ("p", "q", "r"):
        members[f"4.{part}.jpg"] = picture(9)
        members[f"4.{part}.txt"] = f"4.{part}".encode()
    members |= {"5.jpg": picture(5), "5.seg.png": picture(6), "5.txt": b"5"}
    path = write_tar(tmp_path / "a.tar", members)
    keys = [*DOTTED.values(), "4.p", "4.q", "4.r", "5"]
    if indexed:
        index.index_shards([path], workers=1, dali=False)
        # Without a mark each line is compared with the headers of the tar.
        unmarked = Path(shards.index_path(path))
        first, _, lines = unmarked.read_bytes().partition(b"\n")
        for head in (first, b" ".join(first.split()[:2])):
            unmarked.write_bytes(head + b"\n" + lines)
            assert shards.read_table(path).keys() == keys
    table = shards.read_table(path)
    assert table.keys() == keys
    reader = ShardReader([path])
    assert [reader.caption(0, row) for row in range(len(table))] == keys
    assert [reader.key(0, row) for row in range(len(table))] == keys


def test_every_extension_of_an_image_is_read_in_any_case_and_trained_on(tmp_path):
    members = {}
    known = [form for form in FORMS if form != "AVIF" or features.check("avif")]
    names = [extension for form in known for extension in FORMS[form]]
    assert {extension for each in FORMS.values() for extension in each} == set(IMAGES)
    for number, form in enumerate(known):
        for extension in FORMS[form]:
            members[f"{extension}.{extension.upper()}"] = picture(number, form)
            members[f"{extension}.TXT"] = b"a picture"
    path = write_tar(tmp_path / "a.tar", members)
    table = shards.read_table(path)
    assert [IMAGES[code] for code in table.extension] == names
    summary = index.index_shards([path], workers=1)
    assert summary.good == len(names), Path(summary.report).read_text()
    loader = TrainLoader(path, image_size=16, batch_size=len(names), threads=1)
    assert next(iter(loader)).images.isfinite().all()


@pytest.mark.parametrize("common", COMMON)
def test_a_common_image_of_a_sample_comes_before_its_others(tmp_path, common):
    members = {"a.gif": b"gif", f"a.{common}": b"common", "a.bmp": b"bmp", "a.txt": b"words"}
    table = shards.read_table(write_tar(tmp_path / "a.tar", members))
    assert table.entry(0).extension == common

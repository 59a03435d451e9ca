"""clipfast.data.fields: other members for image and caption, from the index to the batch."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clipfast.data import EvalLoader, index, shards
from clipfast.data.check import check_caption
from clipfast.data.fields import Fields
from clipfast.data.reader import ShardReader

JSON = Fields(images=("png", "jpg"), caption="json", caption_key="title")


def make_shard(path: Path, rows: list[bytes]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for i, row in enumerate(rows):
            for extension, data in (("txt", b"other"), ("png", buffer.getvalue()), ("json", row)):
                info = tarfile.TarInfo(f"{i:03d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def row(title: object) -> bytes:
    return json.dumps({"title": title, "url": "u"}).encode()


def test_captions_under_a_json_key_are_checked_indexed_and_loaded(tmp_path):
    rows = [row("first"), b"[1]", row(None), row("  "), b"{", b"\xff", row("last")]
    path = make_shard(tmp_path / "a.tar", rows)
    assert len(shards.read_table(path, JSON)) == len(rows)
    summary = index.index_shards([path], workers=1, fields=JSON)
    assert (summary.samples, summary.good) == (len(rows), 2)
    report = Path(summary.report).read_text()
    for words in ("no text under 'title'", "caption is empty", "in no JSON", "not UTF-8 (byte 0)"):
        assert words in report
    table = shards.read_table(path, JSON)
    assert table.keys() == ["000", "006"]
    assert table.entry(1).extension == "png"
    reader = ShardReader([path], fields=JSON)
    assert [reader.caption(0, i) for i in range(2)] == ["first", "last"]
    loaders = [EvalLoader(path, 16, 4, fields=JSON), EvalLoader(path, 16, 4, fields=JSON)]
    assert len(loaders[0]) == 2
    (batch,) = list(loaders[0])
    assert batch.lengths.tolist() == [3, 3]
    with pytest.raises(ValueError, match="does not hold an image and a caption"):
        shards.read_table(path)


def test_caption_that_cannot_be_read_is_named(tmp_path):
    path = make_shard(tmp_path / "a.tar", [row("first"), b"{"])
    reader = ShardReader([path], fields=JSON)
    with pytest.raises(ValueError, match=r"caption of sample '001' of shard .*a\.tar: .*JSON"):
        reader.caption(0, 1)


def test_fields_default_to_text_beside_four_image_kinds():
    assert Fields().images == ("jpg", "jpeg", "png", "webp")
    assert check_caption(b'{"title": 1}') == ""
    assert "no text" in check_caption(b'{"title": 1}', JSON)
    with pytest.raises(ValueError, match="another one for captions"):
        Fields(caption="png")

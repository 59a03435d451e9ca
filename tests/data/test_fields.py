"""clipfast.data.fields: other members for image and caption, from the index to the batch."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clipfast.data import EvalLoader, index, shards
from clipfast.data.check import check_caption
from clipfast.data.fields import FORMATS, Fields
from clipfast.data.reader import ShardReader

JSON = Fields(images=("png", "jpg"), captions=("json:title",))


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
        shards.read_table(path, Fields(captions=("txt",)))


def test_caption_that_cannot_be_read_is_named(tmp_path):
    path = make_shard(tmp_path / "a.tar", [row("first"), b"{"])
    reader = ShardReader([path], fields=JSON)
    with pytest.raises(ValueError, match=r"caption of sample '001' of shard .*a\.tar: .*JSON"):
        reader.caption(0, 1)


def test_fields_default_to_text_or_a_json_caption_beside_all_that_is_read():
    Image.init()
    of_pillow = {e[1:] for e, form in Image.registered_extensions().items() if form in FORMATS}
    # Floats, which have no defined range.
    assert of_pillow - {"pfm"} <= set(Fields().images)
    assert Fields().captions == ("txt", "json:caption")
    assert check_caption(b'{"title": 1}') == ""
    assert "no text" in check_caption(b'{"title": 1}', JSON)


@pytest.mark.parametrize(
    ("captions", "why"),
    [
        (("png",), "'png' is there twice"),
        (("txt", "txt"), "'txt' is there twice"),
        (("json:a", "json:b"), "json:caption,alt"),
        (("json",), "must name the key"),
        (("json:",), "must name the key"),
        (("json:a,",), "must name the key"),
        ((":a",), "lower case without its dot"),
        ((), "extensions of images and of captions"),
    ],
)
def test_fields_refuse_captions_that_say_nothing(captions, why):
    with pytest.raises(ValueError, match=why):
        Fields(captions=captions)


def test_texts_of_several_keys_and_lists_come_in_order():
    fields = Fields(captions=("json:a,b",))
    data = json.dumps({"a": ["", "one"], "b": "two", "c": "three"}).encode()
    assert fields.texts(data) == ["", "one", "two"]
    assert fields.texts(b'{"b": "two"}') == ["two"]
    for wrong in (b'{"a": 1, "b": []}', b"[]", b"3", b'{"c": "three"}'):
        with pytest.raises(ValueError, match="no text under 'a' or 'b' of the JSON"):
            fields.texts(wrong)
    with pytest.raises(ValueError, match="in no JSON"):
        fields.texts(b"[" * 100_000)

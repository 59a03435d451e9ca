"""Tables of image paths and captions."""

import csv

import pytest
from PIL import Image

from clipfast.eval.sets import open_captions


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_open_captions_joins_rows_of_one_image(images):
    rows = [("caption", "path"), ("a, b", "b.png"), ("two", "a.png"), ("three", "b.png")]
    opened = open_captions(write_table(images / "set.csv", rows))
    assert (opened.name, len(opened)) == ("set", 2)
    assert list(opened.captions) == ["a, b", "two", "three"]
    assert opened.image_of.tolist() == [0, 1, 0]
    assert opened.encoded(1) == (images / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "caption"), ("none.png", "x")], r"row 2: there is no file"),
        ([("path", "caption"), ("a.png", " ")], "caption 0 is empty"),
        ([("path", "caption"), ("a.png",)], "row 2 has 1 cells, and the first row 2"),
        ([("path", "words"), ("a.png", "x")], "needs a column"),
        ([("path", "caption")], "has no caption"),
    ],
)
def test_open_captions_names_bad_rows(images, rows, message):
    with pytest.raises(ValueError, match=message):
        open_captions(write_table(images / "set.csv", rows))


def test_open_captions_names_a_missing_table(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        open_captions(str(tmp_path / "none.csv"))

"""Images with captions from tables and JSON, each in a published form, written here."""

import csv
import json

import pytest
from PIL import Image

from clipfast.eval.sets import open_captions


def write_table(path, rows, separator=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return str(path)


@pytest.fixture
def images(tmp_path):
    """Three images; each file differs."""
    for value, name in enumerate("abc"):
        Image.new("RGB", (2, 2), (value, 0, 0)).save(tmp_path / f"{name}.jpg")
    return tmp_path


def held(opened):
    """Captions by image, as a model would meet them."""
    found = [(opened.encoded(i), []) for i in range(len(opened))]
    for caption, image in zip(opened.captions, opened.image_of.tolist(), strict=True):
        found[image][1].append(caption)
    return found


def file(images, name):
    return (images / f"{name}.jpg").read_bytes()


def test_open_captions_joins_rows_of_one_image(images):
    rows = [("caption", "path"), ("a, b", "b.jpg"), ("two", "a.jpg"), ("three", "b.jpg")]
    opened = open_captions(write_table(images / "set.csv", rows))
    assert (opened.name, opened.split) == ("set", "test")
    assert held(opened) == [(file(images, "b"), ["a, b", "three"]), (file(images, "a"), ["two"])]


def test_open_captions_joins_columns_and_takes_lists(images):
    rows = [("image", "caption_0", "caption_1"), ("a.jpg", "x", "y"), ("b.jpg", "z", "")]
    table = write_table(images / "set.tsv", rows, "\t")
    assert [captions for _, captions in held(open_captions(table))] == [["x", "y"], ["z"]]
    lines = [{"Image": "a.jpg", "captions": ["x", "y"]}, {"image": "b.jpg", "captions": "z"}]
    (images / "set.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    opened = open_captions(str(images / "set.jsonl"))
    assert [captions for _, captions in held(opened)] == [["x", "y"], ["z"]]


def test_open_captions_reads_flickr30k_as_csv_with_lists_and_splits(images):
    (images / "flickr30k-images").mkdir()
    for name in "abc":
        (images / f"{name}.jpg").rename(images / "flickr30k-images" / f"{name}.jpg")
    rows = [("raw", "sentids", "split", "filename", "img_id")]
    for name, split in zip("abc", ("train", "test", "test"), strict=True):
        rows.append(
            (json.dumps([f"{name} one.", f'{name} "two"']), "[0, 1]", split, f"{name}.jpg", 0)
        )
    write_table(images / "flickr_annotations_30k.csv", rows)
    opened = open_captions(f"flickr30k:{images}")
    assert opened.name == "flickr30k"
    assert [captions for _, captions in held(opened)] == [
        ["b one.", 'b "two"'],
        ["c one.", 'c "two"'],
    ]
    with pytest.raises(ValueError, match="no row of split 'val'; its splits are test, train"):
        open_captions(f"flickr30k:{images}", split="val")


def test_open_captions_reads_flickr30k_with_bars(images):
    text = 'image_name| comment_number| comment\na.jpg| 0| A sign says " stop , " .\n'
    (images / "results.csv").write_text(text + "a.jpg| 1| Two .\nb.jpg| 0| Three .\n")
    opened = open_captions(f"flickr30k:{images}")
    assert held(opened) == [
        (file(images, "a"), ['A sign says " stop , " .', "Two ."]),
        (file(images, "b"), ["Three ."]),
    ]


def test_open_captions_reads_the_lines_of_clip_benchmark(images):
    text = 'image,caption\na.jpg,One, with a comma.\na.jpg,"Quoted" it is\n\nb.jpg,Two\n'
    (images / "flickr8k_test_karpathy.txt").write_text(text)
    assert held(open_captions(f"flickr8k:{images}")) == [
        (file(images, "a"), ["One, with a comma.", '"Quoted" it is']),
        (file(images, "b"), ["Two"]),
    ]


def test_open_captions_reads_flickrs_own_tokens(images):
    (images / "x.token").write_text("a.jpg#0\tOne .\na.jpg#1\tTwo .\nb.jpg#0\tThree .\n")
    opened = open_captions(str(images / "x.token"))
    assert [captions for _, captions in held(opened)] == [["One .", "Two ."], ["Three ."]]


def karpathy(images, folder=None):
    entries = [
        {
            "filename": f"{name}.jpg",
            "split": split,
            "imgid": i,
            "sentences": [{"raw": f"{name}{n} "} for n in range(5)],
            **({"filepath": folder} if folder else {}),
        }
        for i, (name, split) in enumerate(zip("abc", ("test", "train", "test"), strict=True))
    ]
    return {"images": entries, "dataset": "flickr30k"}


@pytest.mark.parametrize("folder", [None, "val2014"])
def test_open_captions_reads_karpathys_json(images, folder):
    top = images
    if folder:
        (images / folder).mkdir()
        for name in "abc":
            (images / f"{name}.jpg").rename(images / folder / f"{name}.jpg")
        top = images / folder
    path = images / ("dataset_coco.json" if folder else "dataset_flickr30k.json")
    path.write_text(json.dumps(karpathy(images, folder)))
    for source in (str(path), f"mscoco_captions:{images}"):
        assert held(open_captions(source)) == [
            (file(top, name), [f"{name}{n}" for n in range(5)]) for name in "ac"
        ]
    with pytest.raises(ValueError, match="no image of split 'val'; its splits are test, train"):
        open_captions(str(path), split="val")


def coco():
    images = [{"id": i, "file_name": f"{name}.jpg"} for name, i in (("a", 9), ("b", 3), ("c", 5))]
    annotations = [(9, "one"), (3, "two\n"), (9, "three")]
    return {
        "images": images,
        "annotations": [{"image_id": i, "caption": caption} for i, caption in annotations],
    }


def test_open_captions_reads_coco_by_ids_and_counts_bare_images(images, caplog):
    (images / "val2014").mkdir()
    for name in "abc":
        (images / f"{name}.jpg").rename(images / "val2014" / f"{name}.jpg")
    (images / "annotations").mkdir()
    (images / "annotations" / "captions_val2014.json").write_text(json.dumps(coco()))
    top = images / "val2014"
    expected = [(file(top, "b"), ["two"]), (file(top, "a"), ["one", "three"])]
    assert held(open_captions(f"mscoco_captions:{images}")) == expected
    assert "1 images without a caption are left out, such as c.jpg" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 1, "caption": "x"}]}, "annotation 0: there is no image 1"),
        ({"annotations": [{"image_id": 9}]}, "an entry has no 'caption'"),
        ({"annotations": [{"image_id": 9, "caption": " "}]}, "image 9: it has no caption"),
        ({"annotations": None}, "is of another form"),
        ({"images": []}, "is of another form"),
    ],
)
def test_open_captions_names_bad_coco(images, change, message):
    (images / "x.json").write_text(json.dumps({**coco(), **change}))
    with pytest.raises(ValueError, match=message):
        open_captions(str(images / "x.json"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "caption"), ("none.jpg", "x")], r"line 2: there is no file .*1 of 1 images are"),
        ([("path", "caption"), ("a.jpg", " ")], "line 2: no caption in caption"),
        ([("path", "caption"), ("", "x")], "line 2: column 'path' is empty"),
        ([("path", "caption"), ("a.jpg",)], "line 2: row has 1 cells, and the first row 2"),
        ([("path", "words"), ("a.jpg", "x")], "no column for the caption: call one caption,"),
        ([("where", "caption"), ("a.jpg", "x")], "no column for the image: call one file,"),
        ([("path", "path", "caption")], "has several columns 'path'"),
        ([("path", "caption"), ("a.jpg", "[1]")], "a caption is 1, which is no text"),
        ([("path", "caption")], "has no caption"),
        ([], "no column for the image"),
    ],
)
def test_open_captions_names_bad_rows(images, rows, message):
    with pytest.raises(ValueError, match=message):
        open_captions(write_table(images / "set.csv", rows))


def test_open_captions_names_bad_files(images, tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        open_captions(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="cannot read"):
        open_captions(str(tmp_path / "none.json"))
    (images / "x.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON in UTF-8"):
        open_captions(str(images / "x.json"))
    (images / "x.jsonl").write_text("[1]")
    with pytest.raises(ValueError, match="line 1 is no JSON object"):
        open_captions(str(images / "x.jsonl"))
    (images / "captions.txt").write_text("image,caption\na.jpg\n")
    with pytest.raises(ValueError, match=r"line 2: 'a\.jpg' has no caption"):
        open_captions(f"flickr8k:{images}")
    (images / "below").mkdir()
    with pytest.raises(ValueError, match="has no table and no file of captions"):
        open_captions(str(images / "below"))


def test_open_captions_starts_from_the_root_that_is_named(images, tmp_path):
    (tmp_path / "tables").mkdir()
    table = write_table(tmp_path / "tables" / "t.csv", [("image", "text"), ("x/a.jpg", "one")])
    (images / "pictures" / "x").mkdir(parents=True)
    (images / "a.jpg").rename(images / "pictures" / "x" / "a.jpg")
    with pytest.raises(ValueError, match="name another one as root"):
        open_captions(table)
    assert len(open_captions(table, root=images / "pictures")) == 1

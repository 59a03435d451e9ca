"""Image folders: one subfolder per class."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clipfast.eval.sets import open_set


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (value, 0, 7)).save(path)


def red(encoded):
    return Image.open(BytesIO(encoded)).getpixel((0, 0))[0]


@pytest.fixture
def folder(tmp_path):
    for value, name in enumerate(["b/0.png", "b/1.PNG", "a_c/deep/0.png", "c/x.bmp"]):
        picture(tmp_path / "pets" / name, value)
    return tmp_path / "pets"


def test_open_set_reads_a_folder_with_labels_in_sorted_order(folder):
    # What a folder was unpacked from may lie in it.
    (folder / "pets.tar").write_bytes(b"x")
    opened = open_set(folder, split="val")
    assert (opened.name, opened.split) == ("pets", "val")
    assert opened.classnames == ("a c", "b", "c")
    assert opened.templates == ("a photo of a {c}.",)
    assert opened.labels.tolist() == [0, 1, 1, 2]
    assert opened.labels.dtype == np.int64
    assert [red(opened.encoded(i)) for i in range(len(opened))] == [2, 0, 1, 3]


def test_open_set_takes_the_split_of_a_folder(tmp_path):
    picture(tmp_path / "train" / "x" / "0.png", 1)
    picture(tmp_path / "test" / "x" / "0.png", 2)
    for split, value in (("train", 1), ("test", 2)):
        opened = open_set(str(tmp_path), split=split)
        assert [red(opened.encoded(0)), len(opened)] == [value, 1]
    with pytest.raises(ValueError, match="has the splits test, train; got 'val', which is"):
        open_set(str(tmp_path), split="val")
    picture(tmp_path / "flat" / "test" / "0.png", 1)
    with pytest.raises(ValueError, match="got 'test', which has no subfolder per class"):
        open_set(str(tmp_path / "flat"))


def test_open_set_gives_a_class_one_label_in_all_splits(tmp_path, caplog):
    for name in ("train/a", "train/b", "test/b", "test/c"):
        picture(tmp_path / name / "0.png", 1)
    opened = open_set(str(tmp_path), split="test")
    assert (opened.classnames, opened.labels.tolist()) == (("a", "b", "c"), [1, 2])
    assert "1 classes have no folder, such as a" in caplog.text
    assert open_set(str(tmp_path), split="train").labels.tolist() == [0, 1]


def test_open_set_keeps_a_class_that_is_called_as_a_split(tmp_path):
    for name in ("train", "plane"):
        picture(tmp_path / name / "0.png", 1)
    assert open_set(str(tmp_path), split="train").classnames == ("plane", "train")


def test_open_set_takes_words_from_beside_a_folder_and_from_files(folder, tmp_path):
    (folder / "classnames.txt").write_text("one\ntwo\nthree\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}.\n{c}!\n")
    opened = open_set(str(folder))
    assert opened.classnames == ("one", "two", "three")
    assert opened.templates == ("a {c}.", "{c}!")
    names, templates = tmp_path / "names.txt", tmp_path / "templates.txt"
    names.write_text("\ufeffx\r\ny\r\nz")
    templates.write_text("the {c}")
    opened = open_set(str(folder), classnames=names, templates=templates)
    assert (opened.classnames, opened.templates) == (("x", "y", "z"), ("the {c}",))


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ("a\nb\n", "{c}", "has 3 classes .* and there are 2 class names"),
        ("", "{c}", "no class names"),
        ("a\nb\nc\n", "a photo\n", r"template 1: 'a photo' has no slot \{c\}"),
        ("a\nb\nc\n", "", "no templates"),
    ],
)
def test_open_set_names_words_that_do_not_fit(folder, tmp_path, names, templates, message):
    (tmp_path / "n.txt").write_text(names)
    (tmp_path / "t.txt").write_text(templates)
    with pytest.raises(ValueError, match=message):
        open_set(str(folder), classnames=tmp_path / "n.txt", templates=tmp_path / "t.txt")


def test_open_set_names_a_missing_file_of_words(folder, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none\.txt"):
        open_set(str(folder), classnames=tmp_path / "none.txt")


def test_open_set_names_an_empty_class_and_an_empty_folder(folder, tmp_path):
    (folder / "d").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*d' holds no image"):
        open_set(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no subfolders"):
        open_set(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="does not exist"):
        open_set(str(tmp_path / "none"))


def test_open_set_counts_files_that_are_no_images(folder, caplog):
    (folder / "b" / "notes.md").write_text("x")
    (folder / "b" / ".hidden.png").write_text("x")
    (folder / "b" / "gone.png").symlink_to(folder / "none")
    (folder / "a_c" / "loop").symlink_to(folder / "a_c")
    (folder / "a_c" / "linked").symlink_to(folder / "c")
    opened = open_set(str(folder))
    assert opened.labels.tolist() == [0, 0, 1, 1, 2]
    assert "2 files are no images, such as" in caplog.text
    assert "linked folder leads back up; it is not followed" in caplog.text


def test_open_set_takes_a_folder_that_is_called_like_a_published_set(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    found = open_set("pets")
    assert (found.name, found.classnames) == ("pets", ("a c", "b", "c"))
    (folder.parent / "cifar10").mkdir()
    with pytest.raises(ValueError, match=r"published data set, give its name too: cifar10:cifar10"):
        open_set("cifar10")
    with pytest.raises(ValueError, match=r"'food101' is a name without a place"):
        open_set("food101")

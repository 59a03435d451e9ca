"""Data sets in webdataset shards, written here by tarfile."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipfast.eval.sets import open_captions, open_set


def image(value, form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, form)
    return buffer.getvalue()


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def cls(key, value, label, extension="png"):
    form = {"jpg": "JPEG", "webp": "WEBP"}.get(extension.lower(), "PNG")
    return [(f"{key}.{extension}", image(value, form)), (f"{key}.cls", str(label).encode())]


@pytest.fixture
def benchmark(tmp_path):
    """CLIP_benchmark's layout, with eleven shards."""
    place = tmp_path / "wds_pets"
    for number in range(11):
        write_tar(place / "test" / f"{number}.tar", cls(f"s{number:07}", number, number % 3, "PNG"))
    (place / "test" / "nshards.txt").write_text("11\n")
    (place / "classnames.txt").write_text("cat\ndog\nfox\n")
    (place / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    return place


def red(encoded):
    return Image.open(io.BytesIO(encoded)).getpixel((0, 0))[0]


def test_open_set_reads_the_layout_of_clip_benchmark(benchmark):
    opened = open_set(str(benchmark))
    assert (opened.name, opened.split) == ("wds_pets", "test")
    assert opened.classnames == ("cat", "dog", "fox")
    assert opened.templates == ("a {c}", "the {c}")
    assert opened.labels.tolist() == [number % 3 for number in range(11)]
    assert [red(opened.encoded(i)) for i in range(11)] == list(range(11))
    # Loaders send it to other processes.
    assert pickle.loads(pickle.dumps(opened.encoded))(3) == opened.encoded(3)


def test_open_set_reads_plain_shards_and_counts_what_is_left_out(tmp_path, caplog):
    members = [*cls("b/1", 1, 1, "jpg"), *cls("b/2", 2, 0, "WebP"), ("b/3.png", image(3))]
    members += [("b/4.cls", b"1"), ("b/5.json", b"{}")]
    write_tar(tmp_path / "x-00.tar", members)
    write_tar(tmp_path / "x-01.tar", cls("6", 6, 1))
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    for place in (f"{tmp_path}/x-{{00..01}}.tar", f"{tmp_path}/*.tar", str(tmp_path)):
        caplog.clear()
        opened = open_set(place, classnames=names)
        assert (opened.name, opened.labels.tolist()) == (tmp_path.name, [1, 0, 1])
        assert "3 samples are left out" in caplog.text
        assert "1 x no .cls among .png" in caplog.text


def test_open_set_reads_several_labels_of_an_image(tmp_path):
    flags = [[1, 0, 0], [0, 1, 1]]
    members = []
    for number, each in enumerate(flags):
        members += [(f"{number}.png", image(number)), (f"{number}.npy", npy(np.array(each)))]
    write_tar(tmp_path / "test" / "0.tar", members)
    (tmp_path / "test" / "nshards.txt").write_text("1")
    (tmp_path / "dataset_type.txt").write_text("multilabel\n")
    (tmp_path / "classnames.txt").write_text("a\nb\nc\n")
    opened = open_set(str(tmp_path))
    assert opened.labels.dtype == np.bool_
    assert opened.labels.tolist() == [list(map(bool, each)) for each in flags]
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"has 2 class names, and data set .* has 3 classes"):
        open_set(str(tmp_path))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"3", r"1 labels are outside 0 to 2, such as 3 of image 0"),
        (b"-1", r"outside 0 to 2, such as -1"),
        (b"cat", r"sample 's0000000': \.cls must be the number of a class, .* it is 'cat'"),
        (b"", r"it is ''"),
    ],
)
def test_open_set_names_wrong_labels_in_shards(benchmark, label, message):
    write_tar(benchmark / "test" / "0.tar", [("s0000000.png", image(1)), ("s0000000.cls", label)])
    with pytest.raises(ValueError, match=message):
        open_set(str(benchmark))


def test_open_set_names_missing_and_damaged_shards(benchmark, tmp_path):
    with pytest.raises(ValueError, match="has the splits test; got 'train'"):
        open_set(str(benchmark), split="train")
    (benchmark / "test" / "4.tar").unlink()
    with pytest.raises(ValueError, match=r"1 of 11 shards are missing: .*/4\.tar"):
        open_set(str(benchmark))
    (benchmark / "test" / "nshards.txt").write_text("none")
    with pytest.raises(ValueError, match=r"must hold the number of shards, .* 'none'"):
        open_set(str(benchmark))
    (benchmark / "test" / "nshards.txt").write_text("1")
    (benchmark / "test" / "0.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="is no tar"):
        open_set(str(benchmark))
    (benchmark / "dataset_type.txt").write_text("retrieval")
    with pytest.raises(ValueError, match="holds captions"):
        open_set(str(benchmark))
    (benchmark / "dataset_type.txt").write_text("other")
    with pytest.raises(ValueError, match="must hold classification, multilabel or retrieval"):
        open_set(str(benchmark))
    with pytest.raises(ValueError, match=r"1 of 1 shards are missing"):
        open_set(str(tmp_path / "none.tar"))
    with pytest.raises(ValueError, match=r"no sample of 1 shards has an image and a \.cls"):
        open_set(write_tar(tmp_path / "only.tar", [("a.png", image(1)), ("b.txt", b"x")]))


def test_open_set_names_shards_without_class_names(tmp_path):
    with pytest.raises(ValueError, match="tells no class names"):
        open_set(write_tar(tmp_path / "x.tar", cls("a", 1, 0)))


def test_open_set_takes_words_of_the_catalogue_for_shards(tmp_path):
    shard = write_tar(tmp_path / "x.tar", cls("a", 1, 9))
    opened = open_set(f"wds/vtab/cifar10:{shard}")
    assert (opened.name, opened.classnames[9], len(opened.templates)) == (
        "wds/vtab/cifar10",
        "truck",
        18,
    )
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abc"))
    with pytest.raises(ValueError, match="has 3 class names, and data set 'cifar10' has 10"):
        open_set(f"cifar10:{shard}", classnames=names)


def test_open_captions_reads_several_lines_from_shards(tmp_path):
    members = []
    texts = [b"one", "\ufefftwo\nthree\n".encode(), b"four\r\n\r\nfive"]
    for number, text in enumerate(texts):
        members += [(f"{number}.JPG", image(number)), (f"{number}.txt", text)]
    write_tar(tmp_path / "test" / "0.tar", members)
    (tmp_path / "test" / "nshards.txt").write_text("1")
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    opened = open_captions(f"flickr30k:{tmp_path}")
    assert opened.name == "flickr30k"
    assert list(opened.captions) == ["one", "two", "three", "four", "five"]
    assert opened.image_of.tolist() == [0, 1, 1, 2, 2]
    assert [opened.encoded(i) for i in range(len(opened))] == [image(i) for i in range(3)]


@pytest.mark.parametrize(
    ("text", "message"), [(b" \n", "holds no caption"), (b"\xff", "caption is not UTF-8")]
)
def test_open_captions_names_bad_captions_in_shards(tmp_path, text, message):
    shard = write_tar(tmp_path / "x.tar", [("a.png", image(1)), ("a.txt", text)])
    with pytest.raises(ValueError, match=message):
        open_captions(shard)


def test_open_captions_reads_captions_from_json_as_training_does(tmp_path, caplog):
    members = []
    for number, said in enumerate(({"caption": "one"}, {"alt": ["two", "three"]}, {"caption": ""})):
        members += [(f"{number}.jpg", image(number)), (f"{number}.json", json.dumps(said).encode())]
    shard = write_tar(tmp_path / "x.tar", members)
    opened = open_captions(shard, captions=["json:caption,alt"])
    assert list(opened.captions) == ["one", "two", "three"]
    assert opened.image_of.tolist() == [0, 1, 1]
    assert [opened.encoded(i) for i in range(len(opened))] == [image(i) for i in range(2)]
    assert "1 samples are left out: no caption says anything" in caplog.text
    with pytest.raises(ValueError, match=r"no sample of 1 shards has an image and a \.txt"):
        open_captions(shard)


def test_open_captions_takes_places_of_captions_for_shards_alone(tmp_path):
    (tmp_path / "set.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match="says where shards hold them"):
        open_captions(str(tmp_path / "set.csv"), captions=["txt"])


def test_open_captions_reads_the_embedded_shards():
    opened = open_captions("sample/noto")
    assert len(opened) == len(opened.captions) > 1000

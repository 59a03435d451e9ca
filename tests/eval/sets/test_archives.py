"""CIFAR and MNIST in their published archives, written here with other tools."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipfast.data.plain import plain_size
from clipfast.eval.sets import open_set
from clipfast.eval.sets.rawpixels import png
from clipfast.eval.sets.tamepickle import load_tame

CIFAR_10 = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def batch(seed, count=3):
    """Images [N, 32, 32, 3] and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count).tolist()


def planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_python(folder, name, seed, labels_key="labels", protocol=2):
    images, labels = batch(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content = {b"data": planes(images), labels_key.encode(): labels, b"batch_label": b"x"}
    (folder / name).write_bytes(pickle.dumps(content, protocol))


def write_binary(folder, name, seed, coarse=()):
    images, labels = batch(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(planes(images), labels, strict=True)
    (folder / name).write_bytes(b"".join(bytes((*coarse, n)) + p.tobytes() for p, n in rows))


def write_ten(folder, writer, end=""):
    for seed, name in enumerate([*CIFAR_10["train"], *CIFAR_10["test"]]):
        writer(folder, name + end, seed)


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def assert_holds(opened, seeds):
    images = np.concatenate([batch(seed)[0] for seed in seeds])
    assert opened.labels.tolist() == [n for seed in seeds for n in batch(seed)[1]]
    assert len(opened) == len(images)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(pixels(opened.encoded(i)), image)


@pytest.mark.parametrize(
    ("folder", "writer", "end"),
    [("cifar-10-batches-py", write_python, ""), ("cifar-10-batches-bin", write_binary, ".bin")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_open_set_reads_cifar10(tmp_path, folder, writer, end, packed):
    place = tmp_path / folder
    write_ten(place, writer, end)
    if packed:
        name = "cifar-10-python.tar.gz" if end == "" else "cifar-10-binary.tar.gz"
        archive = tmp_path / "packed" / name
        archive.parent.mkdir()
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(place, folder)
        places = [archive, archive.parent]
    else:
        places = [place, tmp_path]
    for each in places:
        opened = open_set(f"cifar10:{each}")
        assert (opened.name, opened.split) == ("cifar10", "test")
        assert opened.classnames[:2] == ("airplane", "automobile")
        assert len(opened.templates) == 18
        assert_holds(opened, [5])
        assert_holds(open_set(f"cifar10:{each}", split="train"), range(5))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4])
def test_open_set_reads_the_fine_labels_of_cifar100(tmp_path, protocol):
    for seed, name in enumerate(["train", "test"]):
        write_python(tmp_path, name, seed, "fine_labels", protocol)
    opened = open_set(f"wds/vtab/cifar100:{tmp_path}")
    assert (opened.name, len(opened.classnames)) == ("wds/vtab/cifar100", 100)
    assert_holds(opened, [1])


def test_open_set_reads_the_binary_form_of_cifar100(tmp_path):
    for seed, name in enumerate(["train.bin", "test.bin"]):
        write_binary(tmp_path / "cifar-100-binary", name, seed, coarse=(19,))
    assert_holds(open_set(f"cifar100:{tmp_path}", split="train"), [0])


def test_open_set_reads_sheets_of_cifar10(tmp_path):
    for seed, name in enumerate([*CIFAR_10["train"], *CIFAR_10["test"]]):
        images, labels = batch(seed)
        Image.fromarray(images.reshape(len(images), -1, 3)).save(tmp_path / f"{name}.png")
    (tmp_path / "test_lables.json").write_text(json.dumps(labels))
    train = [n for seed in range(5) for n in batch(seed)[1]]
    (tmp_path / "train_labels.json").write_text(json.dumps(train))
    assert_holds(open_set(f"cifar10:{tmp_path}"), [5])
    assert_holds(open_set(f"cifar10:{tmp_path}", split="train"), range(5))
    (tmp_path / "test_lables.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"has 1 labels for 3 images"):
        open_set(f"cifar10:{tmp_path}")


def python_2_pickle(images, labels):
    """The opcodes that cPickle of Python 2 writes for a batch, as those of the published archive.

    Texts are byte strings (U, T), the array is a call of _reconstruct (R) with a state (b).
    """
    data = planes(images).tobytes()
    count, width = planes(images).shape
    shape = b"K" + bytes([count]) + b"M" + struct.pack("<H", width) + b"\x86"
    element = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    element += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01" + shape + element + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    named = b"U\x09filenames](U\x05a.pngU\x05b.pnge"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + listed + named + b"u."


def test_open_set_reads_pickles_of_python_2(tmp_path):
    written = python_2_pickle(*batch(5))
    # The bytes are what they are meant to be: the whole unpickler reads them.
    whole = pickle.loads(written, encoding="bytes")
    np.testing.assert_array_equal(whole[b"data"], planes(batch(5)[0]))
    (tmp_path / "test_batch").write_bytes(written)
    assert_holds(open_set(f"cifar10:{tmp_path}"), [5])


class Calls:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_open_set_calls_nothing_that_a_pickle_names(tmp_path):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(Calls(tmp_path / "made"), 2))
    with pytest.raises(
        ValueError, match=r"it asks for \w+\.mkdir, which no archive of images needs"
    ):
        open_set(f"cifar10:{tmp_path}")
    assert not (tmp_path / "made").exists()
    pickle.loads((tmp_path / "test_batch").read_bytes())
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({b"data": planes(batch(0)[0])}, 2), "has no 'data' and 'labels'"),
        (pickle.dumps({b"data": planes(batch(0)[0]), b"labels": [1]}, 2), "1 labels for 3 images"),
        (pickle.dumps({b"data": [1, 2], b"labels": [1, 2]}, 2), r"are not \[N, 3072\] bytes"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}, 2), "not of bytes"),
        (pickle.dumps({b"data": planes(batch(0)[0])}, 2)[:500], "is no part of CIFAR"),
        (b"", "is no part of CIFAR"),
    ],
)
def test_open_set_names_what_is_no_cifar(tmp_path, content, message):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_set(f"cifar10:{tmp_path}")


def test_load_tame_refuses_every_name_but_those_of_arrays():
    for module, name in (("os", "system"), ("builtins", "eval"), ("numpy", "load")):
        with pytest.raises(ValueError, match=f"it asks for {module}.{name}"):
            load_tame(f"c{module}\n{name}\n(S'1'\ntR.".encode())


def test_open_set_names_missing_and_damaged_parts_of_cifar(tmp_path):
    write_ten(tmp_path, write_binary, ".bin")
    with pytest.raises(ValueError, match="has the splits train, test; got 'val'"):
        open_set(f"cifar10:{tmp_path}", split="val")
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*data_batch_3\.bin"):
        open_set(f"cifar10:{tmp_path}", split="train")
    (tmp_path / "test_batch.bin").write_bytes(bytes(3074))
    with pytest.raises(ValueError, match="no multiple of 3,073"):
        open_set(f"cifar10:{tmp_path}")
    archive = tmp_path / "a" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(gzip.compress(b"x" * 600))
    with pytest.raises(ValueError, match=r"cannot read .*python\.tar\.gz"):
        open_set(f"cifar10:{archive}")


def write_idx(path, array, magic=8):
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, magic, array.ndim, *array.shape)
    data += array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(("below", "dot"), [("", "-"), ("MNIST/raw", "-"), ("data", ".")])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_open_set_reads_mnist(tmp_path, below, dot, end):
    rng = np.random.default_rng(0)
    parts = {}
    for split, part in (("train", "train"), ("test", "t10k")):
        parts[split] = images, labels = rng.integers(0, 256, (4, 28, 28)), rng.integers(0, 10, 4)
        write_idx(tmp_path / below / f"{part}-images{dot}idx3-ubyte{end}", images)
        write_idx(tmp_path / below / f"{part}-labels{dot}idx1-ubyte{end}", labels)
    for split, (images, labels) in parts.items():
        opened = open_set(f"mnist:{tmp_path}", split=split)
        assert opened.labels.tolist() == labels.tolist()
        assert opened.classnames == tuple("0123456789")
        np.testing.assert_array_equal([pixels(opened.encoded(i)) for i in range(4)], images)


def test_open_set_names_damaged_mnist(tmp_path):
    images = tmp_path / "t10k-images-idx3-ubyte"
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    write_idx(images, np.zeros((2, 28, 28)))
    with pytest.raises(ValueError, match="has no labels of split 'test': expected t10k-labels"):
        open_set(f"mnist:{tmp_path}")
    write_idx(labels, np.zeros(3))
    with pytest.raises(ValueError, match="has 2 images and 3 labels"):
        open_set(f"mnist:{tmp_path}")
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match="says it holds 3 bytes and has 2"):
        open_set(f"mnist:{tmp_path}")
    write_idx(labels, np.zeros(3), magic=9)
    with pytest.raises(ValueError, match="is no idx file of bytes in 1 dimensions"):
        open_set(f"mnist:{tmp_path}")
    write_idx(labels, np.array([0, 12]))
    with pytest.raises(ValueError, match="1 labels are outside 0 to 9, such as 12 of image 1"):
        open_set(f"mnist:{tmp_path}")
    write_idx(labels, np.zeros(0))
    write_idx(images, np.zeros((0, 28, 28)))
    with pytest.raises(ValueError, match="split 'test' has no image"):
        open_set(f"mnist:{tmp_path}")


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (7, 5, 3)])
def test_png_is_read_as_it_was_and_needs_no_preparation(shape):
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert plain_size(png(image)) == (shape[1], shape[0])
    np.testing.assert_array_equal(pixels(png(image)), image)

"""Wrong arguments of loaders and their parts: refused at construction, by the promised error."""

import os

import numpy as np
import pytest
import torch

from clipfast.arguments import WrongKindError, real_number, truth, whole_number
from clipfast.data import EvalLoader, ShardReader, TrainLoader
from clipfast.data.check import Limits
from clipfast.data.fields import Fields
from clipfast.data.order import EpochOrder
from clipfast.data.patterns import expand
from clipfast.data.prefetch import Prefetcher
from clipfast.data.shardfiles import ShardFiles

OF_BOTH = [
    ({"image_size": 0}, ValueError, "image_size must be from 1 to 8,192; got 0"),
    ({"image_size": 10**9}, ValueError, "image_size must be from 1 to 8,192"),
    ({"image_size": 32.0}, TypeError, r"image_size must be a whole number.*got 32.0 \(float\)"),
    ({"image_size": "32"}, TypeError, r"image_size must be a whole number.*got '32' \(str\)"),
    ({"image_size": (32, 32)}, TypeError, "image_size"),
    ({"image_size": True}, TypeError, "image_size"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1; got 0"),
    ({"batch_size": -8}, ValueError, "batch_size"),
    ({"batch_size": 8.0}, TypeError, "batch_size"),
    ({"batch_size": None}, TypeError, "batch_size"),
    ({"rank": 2, "world_size": 2}, ValueError, "rank must be from 0 to 1; got 2"),
    ({"rank": -1}, ValueError, "rank must be from 0 to 0; got -1"),
    ({"world_size": 0}, ValueError, "world_size must be at least 1"),
    ({"world_size": "2"}, TypeError, "world_size"),
    ({"threads": 0}, ValueError, "threads must be from 1 to 4,096; got 0"),
    ({"threads": 1.5}, TypeError, "threads"),
    ({"context_length": 2}, ValueError, "context_length must be at least 3.*start, end"),
    ({"context_length": None}, TypeError, "context_length"),
    ({"dtype": torch.uint8}, ValueError, "one of torch.float32.*since pixels are normalised"),
    ({"dtype": torch.float64}, ValueError, "dtype"),
    ({"dtype": "float32"}, TypeError, "dtype must be a torch.dtype"),
    ({"device": "gpu"}, ValueError, "device must be 'cpu', 'cuda'"),
    ({"device": "meta"}, ValueError, "device must be"),
    ({"device": "cuda:99"}, ValueError, "torch sees"),
    ({"device": 1.5}, TypeError, "device must be"),
    ({"fields": "txt"}, TypeError, "fields must be Fields"),
    ({"patterns": []}, ValueError, "at least one shard pattern"),
    ({"patterns": "nowhere.tar"}, FileNotFoundError, "nowhere.tar.*check the name, seen from"),
    ({"patterns": 5}, TypeError, "must be text or a path"),
]
OF_TRAINING = [
    ({"batch_size": 9, "world_size": 2}, ValueError, "does not divide by 2 ranks"),
    ({"batch_size": 10**6}, ValueError, "less than one global batch of 1000000"),
    ({"seed": -1}, ValueError, "seed must be from 0"),
    ({"seed": 2**63}, ValueError, "seed must be from 0"),
    ({"seed": 1.0}, TypeError, "seed"),
    ({"window": 0}, ValueError, "window must be at least 1.*shuffled together"),
    ({"window": "all"}, TypeError, "window"),
    ({"shuffle": "no"}, TypeError, "shuffle must be True or False"),
    ({"scale": (0.0, 1.0)}, ValueError, "0 < smallest <= largest <= 1"),
    ({"scale": (0.9, 0.5)}, ValueError, "0 < smallest <= largest <= 1"),
    ({"scale": (0.9, float("nan"))}, ValueError, r"scale\[1\] must be finite"),
    ({"scale": 0.9}, TypeError, "scale must be two numbers"),
    ({"scale": (0.5, 0.8, 1.0)}, TypeError, "scale must be two numbers"),
    ({"scale": ("a", 1.0)}, TypeError, r"scale\[0\] must be a number"),
]
OF_EVALUATION = [
    ({"limit": -1}, ValueError, "limit must be at least 0.*None reads all"),
    ({"limit": 2.5}, TypeError, "limit"),
    ({"limit": "8"}, TypeError, "limit"),
]
GIVEN = {"patterns": "sample/noto", "image_size": 16, "batch_size": 8, "threads": 1}


@pytest.mark.parametrize(
    ("loader", "arguments", "kind", "words"),
    [
        *((TrainLoader, *case) for case in OF_BOTH + OF_TRAINING),
        *((EvalLoader, *case) for case in OF_BOTH + OF_EVALUATION),
    ],
)
def test_loaders_refuse_a_wrong_argument_at_construction(loader, arguments, kind, words):
    with pytest.raises(kind, match=words) as caught:
        loader(**{**GIVEN, **arguments})
    # Version 0.1 promised a ValueError of every argument that does not fit.
    assert isinstance(caught.value, ValueError | FileNotFoundError)


def test_loaders_take_numpy_integers_for_whole_numbers():
    numbers = {"image_size": np.int64(16), "batch_size": np.uint8(8), "threads": np.int32(1)}
    loader = TrainLoader("sample/noto", **numbers, seed=np.int64(3), window=np.int64(64))
    batch = next(iter(loader))
    assert batch.images.shape == (8, 3, 16, 16)
    assert all(type(value) in (int, str) for value in loader.state_dict().values())
    assert len(EvalLoader("sample/noto", **numbers, limit=np.int64(5))) == 5


@pytest.mark.parametrize("batch_size", [10**9, 10**30])
def test_eval_loader_takes_a_batch_beyond_its_samples_as_one_of_all(batch_size):
    whole = EvalLoader("sample/noto", 8, 10**4, limit=20, threads=1)
    loader = EvalLoader("sample/noto", 8, batch_size, limit=20, threads=1)
    (expected,), (batch,) = list(whole), list(loader)
    assert batch.images.shape == (20, 3, 8, 8)
    assert torch.equal(batch.images, expected.images)


@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (TrainLoader, {"batch_size": 400}),
        (TrainLoader, {"batch_size": 800, "world_size": 2}),
        (EvalLoader, {"batch_size": 400}),
        (EvalLoader, {"batch_size": 10**9, "limit": 400}),
    ],
)
def test_loaders_refuse_a_batch_beyond_the_machines_memory(loader, options, monkeypatch):
    # 400 images of 64 x 64 in float32 have 19,660,800 bytes.
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4800}
    monkeypatch.setattr("clipfast.data.workers.os.sysconf", pages.__getitem__)
    loader("sample/noto", 64, **options)
    pages["SC_PHYS_PAGES"] = 4799
    words = r"a batch of 400 images of 64 x 64 .* has 0\.0 GB, more than .* pass a smaller"
    with pytest.raises(ValueError, match=words):
        loader("sample/noto", 64, **options)
    loader("sample/noto", 64, **options, dtype=torch.float16)


def test_eval_loader_with_a_limit_of_0_reads_nothing():
    loader = EvalLoader("sample/noto", 16, 8, limit=0)
    assert len(loader) == 0
    assert list(loader) == []


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: ShardReader([], 0), ValueError, "context_length"),
        (lambda: ShardReader([], fields=None), TypeError, "fields"),
        (lambda: ShardFiles([], 0), ValueError, "max_open"),
        (lambda: ShardFiles([], "8"), TypeError, "max_open"),
        (lambda: Prefetcher(id, [], threads=0, depth=1), ValueError, "threads"),
        (lambda: Prefetcher(id, [], threads=1, depth=0), ValueError, "depth"),
        (lambda: Limits(min_side=0), ValueError, "min_side"),
        (lambda: Limits(max_pixels=1e8), TypeError, "max_pixels"),
        (lambda: Limits(max_aspect=0.5), ValueError, "max_aspect must be at least 1"),
        (lambda: Limits(max_aspect=float("nan")), ValueError, "max_aspect must be finite"),
        (lambda: Fields(images="jpg"), TypeError, "images must be extensions"),
        (lambda: Fields(images=()), ValueError, "expected extensions of images"),
        (lambda: Fields(images=(".jpg",)), ValueError, "without its dot; got '.jpg'"),
        (lambda: Fields(captions=("TXT",)), ValueError, "lower case"),
        (lambda: Fields(captions=None), TypeError, "captions must be such as"),
        (lambda: Fields(captions=("jpg",)), ValueError, "'jpg' is there twice"),
        (lambda: EpochOrder([3, -1]), ValueError, "counts must not be negative; got -1"),
        (lambda: EpochOrder([1.5]), TypeError, "counts must be a list of whole numbers"),
        (lambda: EpochOrder(5), TypeError, "counts must be a list"),
        (lambda: EpochOrder([5], seed=-1), ValueError, "seed"),
        (lambda: EpochOrder([5], window=0), ValueError, "window"),
        (lambda: EpochOrder([5]).locate(0, 3, 6), ValueError, "has no positions 3 to 6"),
        (lambda: EpochOrder([5]).locate(-1, 0, 1), ValueError, "epochs count from 0"),
        (lambda: EpochOrder([5]).crops(0, 3, 2), ValueError, "has no positions 3 to 2"),
    ],
)
def test_parts_of_the_loaders_refuse_a_wrong_argument(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize(
    ("pattern", "kind", "words"),
    [
        ("a::b", ValueError, "'::' does not join patterns here; give them one by one: 'a' 'b'"),
        ("F/0.tar::F/1.tar", ValueError, "'::' does not join patterns"),
        ("1::2", ValueError, "is a list of weights, which are not read"),
        ("::2", ValueError, "is a list of weights"),
        ("F/0.tar,F/1.tar", FileNotFoundError, "a comma joins no patterns"),
        ("F/nowhere/0.tar", FileNotFoundError, "there is no folder '.*nowhere'"),
        ("F/9.tar", FileNotFoundError, "1 of 1 shards are missing: .*; check the name"),
        ("F/{0..3}.tar", FileNotFoundError, "2 of 4 shards are missing: .*complete the download"),
        ("F/{0..2..0}.tar", ValueError, "has a step of 0"),
        ("F/{0..99999999}.tar", ValueError, "names 100,000,000 shards"),
        ("F/{0..9999}{0..9999}.tar", ValueError, "names 100,000,000 shards"),
        ("F/{}.tar", ValueError, "neither a range"),
        ("F/{a..c}.tar", ValueError, "neither a range"),
        ("F/{0..-1}.tar", ValueError, "neither a range"),
        ("F/0}.tar", ValueError, "without its '{'"),
        ("F/{0,{1}.tar", ValueError, "without its '}'"),
        ("tape://bucket/0.tar", ValueError, "'tape://' is not read"),
        ("TAPES://host/0.tar", ValueError, "'tapes://' is not read"),
        ("sample/emoji", ValueError, "the embedded shards are sample, sample/noto"),
        ("F/a\0.tar", ValueError, "holds a zero byte"),
        ("F/pipe.tar", ValueError, "is no file: a device, a pipe"),
        ("F/link.tar", ValueError, "is no file: .* a link to nothing"),
        (b"F/0.tar", TypeError, "must be text or a path"),
        (None, TypeError, "must be text or a path; got None"),
        (["F/0.tar", 1], TypeError, r"must be text or a path; got 1 \(int\)"),
        (["F/0.tar", ""], ValueError, "at least one shard pattern"),
    ],
)
def test_expand_names_the_true_cause(tmp_path, pattern, kind, words):
    for number in range(2):
        (tmp_path / f"{number}.tar").touch()
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "link.tar").symlink_to(tmp_path / "nothing")
    put = str(tmp_path)
    if isinstance(pattern, str):
        pattern = pattern.replace("F", put)
    elif isinstance(pattern, list):
        pattern = [each.replace("F", put) if isinstance(each, str) else each for each in pattern]
    with pytest.raises(kind, match=words):
        expand(pattern)


def test_expand_reads_ranges_downwards_and_in_steps(tmp_path):
    for number in range(6):
        (tmp_path / f"{number:02d}.tar").touch()

    def names(pattern: str) -> list[str]:
        return [path.rpartition("/")[2][:2] for path in expand(f"{tmp_path}/{pattern}.tar")]

    assert names("{05..02}") == ["05", "04", "03", "02"]
    assert names("{00..05..2}") == ["00", "02", "04"]
    assert names("{05..00..3}") == ["05", "02"]


def test_expand_takes_a_file_whose_name_has_two_colons(tmp_path):
    (tmp_path / "a::b.tar").touch()
    assert expand(tmp_path / "a::b.tar") == [str(tmp_path / "a::b.tar")]


def test_whole_number_real_number_and_truth_take_what_fits():
    assert whole_number("n", np.int16(3), 0) == 3
    assert type(whole_number("n", torch.tensor(3), 0)) is int
    assert real_number("x", np.float32(0.5)) == 0.5
    assert truth("b", np.True_) is True
    for wrong in (True, np.False_, "3", None, 3.0):
        with pytest.raises(WrongKindError, match="n must be a whole number"):
            whole_number("n", wrong, 0)
    with pytest.raises(WrongKindError, match="b must be True or False; got 1"):
        truth("b", 1)

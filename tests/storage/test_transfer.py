"""Files that go to a store and come back are the same bytes, or it is said."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
import torch

from clipfast import storage
from clipfast.storage import transfer
from clipfast.storage.patience import unwanted
from clipfast.storage.transfer import WrongContentError, bring, part_size, send
from tests.storage.memory import Memory

pytestmark = pytest.mark.xdist_group("stores")
PART = 5 << 20  # the least that S3 takes for a part that is not the last one


def content(size: int) -> tuple[bytes, str]:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    return data, hashlib.sha256(data).hexdigest()


@pytest.fixture
def memory(monkeypatch):
    made = Memory()
    monkeypatch.setitem(storage._storages, "mem", made)
    return made


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART + 12_345])
@pytest.mark.parametrize("place", ["s3", "file", "mem"])
def test_a_file_goes_to_a_store_in_parts_and_comes_back(
    size, place, request, tmp_path, monkeypatch, memory
):
    monkeypatch.setattr(transfer, "_PART", PART)
    if place == "s3":
        request.getfixturevalue("s3")
    folder = {"s3": "s3://shards/sent", "file": str(tmp_path / "a/b"), "mem": "mem://x"}[place]
    data, digest = content(size)
    here, back, moved = tmp_path / "here", tmp_path / "back", []
    here.write_bytes(data)
    path = f"{folder}/{size}"
    send(here, path, size, digest, moved.append)
    # Read once here; a store that names the content by its MD5 is not read back.
    assert sum(moved) == (size if place == "s3" else 2 * size)
    bring(path, back, size, digest, moved.append)
    assert back.read_bytes() == data


def test_a_large_file_is_sent_in_several_requests(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_PART", PART)
    data, digest = content(2 * PART + 7)
    (tmp_path / "here").write_bytes(data)
    # The second part fails twice, and is sent again by itself.
    s3.met.clear()
    s3.spoils = "PUT"
    s3.spoil([None, None, "503", "reset"])
    send(tmp_path / "here", "s3://shards/sent/parts", len(data), digest)
    assert s3.met["503"] + s3.met["reset"] == 2
    assert s3.met["PUT"] == 3
    assert s3.met["POST"] == 2


def test_parts_are_large_enough_for_the_10_000_that_s3_takes():
    for size in (1, 10**9, 200 * 10**9, 10**12 + 1):
        part = part_size(size)
        assert -(-size // part) <= 10_000
        assert part % (1 << 20) == 0


@pytest.mark.parametrize("place", ["s3", "file", "mem"])
def test_a_file_that_is_not_what_was_saved_makes_no_object(
    place, request, tmp_path, memory, monkeypatch
):
    monkeypatch.setattr(transfer, "_PART", PART)
    if place == "s3":
        request.getfixturevalue("s3")
    folder = {"s3": "s3://shards/wrong", "file": str(tmp_path / "w"), "mem": "mem://x"}[place]
    for size in (1000, 2 * PART + 3):
        data, digest = content(size)
        here = tmp_path / "here"
        here.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(WrongContentError, match="here has other content than was saved"):
            send(here, f"{folder}/0", size, digest)
        here.write_bytes(data + b"more")
        with pytest.raises(WrongContentError):
            send(here, f"{folder}/0", size, digest)
        here.unlink()
        with pytest.raises(WrongContentError, match="here is missing"):
            send(here, f"{folder}/0", size, digest)
        assert not storage.storage_of(folder).is_file(f"{folder}/0")


def test_an_object_that_a_store_changed_is_found_by_reading_it_back(memory, tmp_path):
    data, digest = content(3000)
    (tmp_path / "here").write_bytes(data)
    write = memory.write_atomic
    memory.write_atomic = lambda path, data: write(path, data[:-1] + b"?")
    with pytest.raises(WrongContentError, match="mem://x/0 has other content than was written"):
        send(tmp_path / "here", "mem://x/0", 3000, digest)
    memory.write_atomic = lambda path, data: write(path, data[:-1])
    with pytest.raises(WrongContentError, match="has 2,999 bytes after 3,000 were written"):
        send(tmp_path / "here", "mem://x/0", 3000, digest)
    for other in (data[:-1], data[:-1] + b"?"):
        write("mem://x/0", other)
        with pytest.raises(WrongContentError, match="mem://x/0 has"):
            bring("mem://x/0", tmp_path / "back", 3000, digest)


def test_a_file_that_nobody_wants_any_more_is_not_sent_to_its_end(memory, tmp_path):
    data, digest = content(9 << 20)
    (tmp_path / "here").write_bytes(data)
    given_up = threading.Event()
    token = unwanted.set(given_up)
    try:
        with pytest.raises(InterruptedError):
            send(tmp_path / "here", "mem://x/0", len(data), digest, lambda _: given_up.set())
    finally:
        unwanted.reset(token)
    assert memory.objects == {}


def test_weights_in_a_store_are_measured_and_started_from(memory, tmp_path):
    from clipfast.engine.builders import build_model
    from clipfast.engine.config import ModelOptions
    from clipfast.eval.models import load_model
    from clipfast.models import create_model, export
    from tests.engine.plans import plan

    model, file = create_model("RN-tiny"), tmp_path / "final.safetensors"
    export(model.state_dict(), file)
    memory.objects["mem://runs/a/final.safetensors"] = file.read_bytes()
    for weights in ("mem://runs/a/final.safetensors", "mem://runs/a"):
        loaded = load_model("RN-tiny", weights, activation="quick_gelu")
        assert loaded.weights == weights
        assert torch.equal(loaded.model.logit_scale, model.logit_scale)
    options = ModelOptions("RN-tiny", weights="mem://runs/a/final.safetensors", compile="none")
    started = build_model(plan(model=options))
    for one, other in zip(started.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"mem://runs/b: mem://runs/b/final\.safetensors"):
        load_model("RN-tiny", "mem://runs/b")

"""Loaders leave nothing behind, over epochs and when they are left in the middle."""

import pytest

from clipfast.data import EvalLoader, TrainLoader
from tests.data.test_loader import SIZE, encoded, picture, write_shard
from tests.process_use import (
    ProcessUse,
    assert_flat,
    assert_flat_when_repeated,
    without_the_collector,
)


@pytest.fixture
def shards(tmp_path) -> list[str]:
    images = [("jpg", encoded(picture(), "JPEG")), ("png", encoded(picture("RGBA"), "PNG"))]
    return [
        write_shard(tmp_path / f"{part}.tar", [(*images[i % 2], f"number {i}") for i in range(40)])
        for part in range(3)
    ]


def test_10_epochs_of_a_train_loader_leave_memory_threads_and_descriptors_as_they_were(shards):
    loader = TrainLoader(shards, SIZE, 8, threads=2)
    assert loader.batches_per_epoch == 15
    with without_the_collector():
        batches = iter(loader)
        for batch in batches:
            if batch.epoch == 2:
                break
        before = ProcessUse.now()
        for batch in batches:
            if batch.epoch == 12:
                break
        assert_flat(before, megabytes=4)
        batches.close()


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_a_train_loader_left_in_the_middle_ends_its_threads_and_closes_its_shards(shards, batches):
    def visit() -> None:
        loader = TrainLoader(shards, SIZE, 8, threads=2)
        for batch in loader:
            if batch.index == batches:
                break

    with without_the_collector():
        assert_flat_when_repeated(visit, megabytes=4)


def test_an_eval_loader_reads_again_after_it_was_closed(shards):
    loader = EvalLoader(shards, SIZE, 50)
    first = [batch.tokens for batch in loader]
    before = ProcessUse.now()
    second = [batch.tokens for batch in loader]
    assert [len(tokens) for tokens in first] == [50, 50, 20]
    assert all((one == two).all() for one, two in zip(first, second, strict=True))
    assert_flat(before, megabytes=20)


def test_a_broken_image_leaves_no_thread_and_no_descriptor(tmp_path):
    broken = write_shard(tmp_path / "broken.tar", [("jpg", b"\xff\xd8 no more", "x")] * 9)

    def visit() -> None:
        with pytest.raises(ValueError, match="cannot decode the image"):
            list(EvalLoader(broken, SIZE, 4))

    with without_the_collector():
        assert_flat_when_repeated(visit, megabytes=4)

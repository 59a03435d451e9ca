"""What curation reads of a store: as of files, in few requests."""

from __future__ import annotations

import pytest

from clipfast.curate import shards as reading
from clipfast.curate.shards import captions, images, shards_of
from tests.storage.conftest import address

pytestmark = pytest.mark.xdist_group("stores")


@pytest.mark.parametrize("members", [4096, 3])
def test_members_of_a_shard_in_a_store_come_in_order_and_in_few_requests(
    web, folder, monkeypatch, members
):
    monkeypatch.setattr(reading, "_BATCH_MEMBERS", members)
    (far,) = shards_of([f"{address(web)}/00002.tar"])
    (near,) = shards_of([str(folder / "00002.tar")])
    for read in (images, captions):
        web.met.clear()
        expected = list(read(near))
        assert list(read(far)) == expected
        assert len(expected) == near.samples > 5
        # Those that look at the shard and its index come first; one per batch would do.
        assert web.met["GET"] <= 4 + -(-near.samples // members)


def test_a_member_larger_than_a_batch_is_a_batch_of_its_own(folder, monkeypatch):
    (near,) = shards_of([str(folder / "00002.tar")])
    expected = list(images(near))
    monkeypatch.setattr(reading, "_BATCH_BYTES", 1)
    assert list(images(near)) == expected

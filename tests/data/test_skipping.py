"""Broken samples in training: stopped at or left out, the same on any ranks, after any resume."""

import io
import itertools
import logging
import tarfile
from pathlib import Path

import pytest
import torch

from clipfast.data import EvalLoader, TrainLoader
from clipfast.data.blank import is_blank
from clipfast.data.index import index_shards
from clipfast.tokenizer import tokenize_with_lengths
from tests.data.broken import Kind, good, kinds, write_shard
from tests.process_use import ProcessUse, assert_flat, without_the_collector

SIZE = 16
BROKEN = {name: kind for name, kind in kinds().items() if kind.words}
FIT = {name: kind for name, kind in kinds().items() if not kind.words}
# One is found by its caption, one by its header, and two by the decoder alone.
MIXED = ("zero-width", "html", "jpeg cut in its pixels", "png with a wrong checksum")


def take(loader: TrainLoader, batches: int) -> list:
    return list(itertools.islice(loader, batches))


def places(batch) -> list[tuple[int, int]]:
    return list(zip(batch.shard.tolist(), batch.row.tolist(), strict=True))


def one_of_12(folder: Path, kind: Kind) -> str:
    return write_shard(folder / "x.tar", [good(i) if i != 5 else kind for i in range(12)])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[str]:
    """Two shards of 24 samples, three of them broken in each."""
    folder = tmp_path_factory.mktemp("mixed")
    shards = []
    for shard in range(2):
        samples = [good(100 * shard + i) for i in range(24)]
        for i, name in enumerate(MIXED[shard:] + MIXED[:1]):
            if i < 3:
                samples[3 + 7 * i] = BROKEN[name]
        shards.append(write_shard(folder / f"{shard}.tar", samples))
    return shards


BAD = {(shard, row) for shard in range(2) for row in (3, 10, 17)}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sample_stops_is_skipped_or_is_left_out_by_the_index(tmp_path, name):
    kind = BROKEN[name]
    shard = one_of_12(tmp_path, kind)
    with pytest.raises(ValueError, match=r"'000005' of shard .*x\.tar: ") as stopped:
        take(TrainLoader(shard, SIZE, 4, threads=1), 3)
    assert kind.words in str(stopped.value)
    assert "or pass --data.on-error skip" in str(stopped.value)
    with pytest.raises(ValueError, match="'000005'"):
        list(EvalLoader(shard, SIZE, 4, threads=1))
    skipped = []
    loader = TrainLoader(shard, SIZE, 4, threads=1, on_error="skip", on_skip=skipped.append)
    batches = take(loader, 8)
    assert [each.key for each in skipped] == ["000005"]
    assert kind.words in skipped[0].reason
    assert all(len(set(places(batch))) == 4 for batch in batches)
    assert (0, 5) not in {place for batch in batches for place in places(batch)}
    index_shards([shard], workers=1, report=str(tmp_path / "report.tsv"))
    assert "\t000005\t" in (tmp_path / "report.tsv").read_text()
    loader = TrainLoader(shard, SIZE, 4, threads=1)
    assert len(loader.order) == 11
    take(loader, 4)


@pytest.mark.parametrize("name", FIT)
def test_an_odd_sample_trains_with_and_without_an_index(tmp_path, name):
    shard = one_of_12(tmp_path, FIT[name])
    without = take(TrainLoader(shard, SIZE, 12, threads=1), 1)[0]
    index_shards([shard], workers=1, report=str(tmp_path / "report.tsv"))
    with_one = take(TrainLoader(shard, SIZE, 12, threads=1), 1)[0]
    assert torch.equal(without.images, with_one.images)
    assert torch.equal(without.tokens, with_one.tokens)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ranks", [2, 4])
def test_what_stands_in_for_broken_samples_does_not_depend_on_ranks_and_threads(
    mixed, ranks, threads
):
    alone = TrainLoader(mixed, SIZE, 8, seed=1, threads=1, on_error="skip")
    whole = take(alone, 15)
    parts = []
    names = set()
    for rank in range(ranks):
        loader = TrainLoader(
            *(mixed, SIZE, 8),
            seed=1,
            rank=rank,
            world_size=ranks,
            threads=threads,
            on_error="skip",
        )
        parts.append(take(loader, 15))
        names |= {(each.shard, each.row, each.reason) for each in loader.skipped}
    assert {(each.shard, each.row, each.reason) for each in alone.skipped} == names
    assert {(shard, row) for shard, row, _ in names} == BAD
    for one, *shares in zip(whole, *parts, strict=True):
        assert places(one) == [place for share in shares for place in places(share)]
        assert torch.equal(one.images, torch.cat([share.images for share in shares]))


def test_good_samples_keep_their_place_and_are_seen_once_per_epoch(mixed):
    loader = TrainLoader(mixed, SIZE, 8, seed=1, threads=1, on_error="skip")
    batches = take(loader, 3 * loader.batches_per_epoch)
    for epoch in range(3):
        first = epoch * loader.batches_per_epoch
        seen = [p for b in batches[first : first + loader.batches_per_epoch] for p in places(b)]
        assert not BAD & set(seen)
        order = loader.order.locate(epoch, 0, 48)
        plain = list(zip(order.shard.tolist(), order.row.tolist(), strict=True))
        # Six are broken of six batches of eight, and none is left over to fill the end.
        assert len(set(seen)) >= 48 - 2 * len(BAD)
        first_rows = [p for p in plain[:8] if p not in BAD]
        assert set(first_rows) <= set(seen[:8])


@pytest.mark.parametrize("stop", [1, 4, 7, 13])
def test_a_resumed_stream_goes_on_bit_for_bit(mixed, stop):
    uninterrupted = take(TrainLoader(mixed, SIZE, 8, seed=3, threads=1, on_error="skip"), 18)
    first = TrainLoader(mixed, SIZE, 8, seed=3, threads=2, on_error="skip")
    take(first, stop)
    state = first.state_dict()
    again = []
    loader = TrainLoader(mixed, SIZE, 8, seed=3, on_error="skip", on_skip=again.append)
    loader.load_state_dict(state)
    assert loader.skipped == first.skipped
    for resumed, expected in zip(take(loader, 18 - stop), uninterrupted[stop:], strict=True):
        assert places(resumed) == places(expected)
        assert torch.equal(resumed.images, expected.images)
        assert torch.equal(resumed.tokens, expected.tokens)
    # Named once, over the whole run.
    assert {(e.shard, e.row) for e in again} == BAD - {(e.shard, e.row) for e in first.skipped}


def test_a_run_that_skipped_goes_on_without_what_it_knows_though_it_stops_now(mixed):
    uninterrupted = take(TrainLoader(mixed, SIZE, 8, seed=3, threads=1, on_error="skip"), 12)
    first = TrainLoader(mixed, SIZE, 8, seed=3, threads=1, on_error="skip")
    take(first, 6)
    assert len(first.skipped) == len(BAD)
    loader = TrainLoader(mixed, SIZE, 8, seed=3, threads=1)
    loader.load_state_dict(first.state_dict())
    assert [places(b) for b in take(loader, 6)] == [places(b) for b in uninterrupted[6:]]


def test_a_skipped_sample_is_named_once_in_the_log(mixed, caplog):
    with caplog.at_level(logging.WARNING, "clipfast.data.skipping"):
        take(TrainLoader(mixed, SIZE, 8, threads=1, on_error="skip"), 18)
    lines = [r.getMessage() for r in caplog.records if r.name == "clipfast.data.skipping"]
    assert len(lines) == len(set(lines)) == len(BAD)
    assert all("left out: sample '0000" in line and ".tar: " in line for line in lines)


@pytest.mark.parametrize("most", [0, 3, 5])
def test_too_many_broken_samples_stop_with_all_of_them_named(mixed, most):
    loader = TrainLoader(mixed, SIZE, 8, threads=1, on_error="skip", max_errors=most)
    words = rf"{most + 1} samples are broken, more than --data.max-errors {most}\."
    with pytest.raises(ValueError, match=words) as stopped:
        take(loader, 18)
    assert str(stopped.value).count("    sample '0000") == most + 1


def test_as_many_broken_samples_as_are_borne_with_do_not_stop(mixed):
    loader = TrainLoader(mixed, SIZE, 8, threads=1, on_error="skip", max_errors=len(BAD))
    take(loader, 18)
    assert len(loader.skipped) == len(BAD)


def test_many_broken_samples_are_told_by_kinds(tmp_path):
    shard = write_shard(tmp_path / "bad.tar", [BROKEN["html"]] * 60 + [good(i) for i in range(20)])
    loader = TrainLoader(shard, SIZE, 10, threads=1, shuffle=False, on_error="skip", max_errors=55)
    with pytest.raises(ValueError, match=r"56 samples are broken.*\n    56 x image is of no"):
        take(loader, 3)


def test_data_of_broken_samples_alone_say_so_at_once(tmp_path):
    shard = write_shard(tmp_path / "bad.tar", [BROKEN["jpeg cut in its pixels"]] * 9)
    with pytest.raises(ValueError, match=r"no sample is left.* 9 of 9 are broken"):
        take(TrainLoader(shard, SIZE, 4, threads=1, on_error="skip"), 1)


def test_what_another_rank_met_changes_no_batch(mixed):
    plain = take(TrainLoader(mixed, SIZE, 8, seed=2, threads=1, on_error="skip"), 12)
    other = TrainLoader(mixed, SIZE, 8, seed=7, threads=1, on_error="skip")
    take(other, 6)
    told = TrainLoader(mixed, SIZE, 8, seed=2, threads=1, on_error="skip")
    told.learn(other.skipped)
    for one, two in zip(plain, take(told, 12), strict=True):
        assert places(one) == places(two)
        assert torch.equal(one.images, two.images)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_shard_that_is_cut_or_goes_away_stops_the_run_and_is_named(tmp_path, on_error):
    shards = [
        write_shard(tmp_path / f"{part}.tar", [good(10 * part + i) for i in range(8)])
        for part in range(2)
    ]

    def loader() -> TrainLoader:
        return TrainLoader(shards, SIZE, 4, threads=1, shuffle=False, on_error=on_error)

    cut = loader()
    whole = Path(shards[1]).read_bytes()
    Path(shards[1]).write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=r"1\.tar"):
        take(cut, 4)
    with pytest.raises(ValueError, match=r"1\.tar' is truncated"):
        loader()
    Path(shards[1]).write_bytes(whole)
    gone = loader()
    Path(shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.tar"):
        take(gone, 4)


def test_an_index_with_fewer_samples_than_before_is_named(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [good(i) for i in range(8)])
    loader = TrainLoader(shard, SIZE, 8, threads=1)
    write_shard(tmp_path / "0.tar", [good(i) for i in range(4)])
    with pytest.raises(IndexError, match=r"0\.tar holds 4 samples, and row \d was asked for"):
        take(loader, 1)


def test_skipping_leaves_no_threads_and_no_descriptors(mixed):
    def visit() -> None:
        take(TrainLoader(mixed, SIZE, 8, threads=1, on_error="skip", on_skip=id), 8)

    with without_the_collector():
        visit()
        before = ProcessUse.now()
        for _ in range(3):
            visit()
        assert_flat(before, megabytes=8)


def test_on_error_is_one_of_two_words():
    with pytest.raises(ValueError, match="on_error must be 'stop' or 'skip'; got 'ignore'"):
        TrainLoader("sample/noto", SIZE, 8, on_error="ignore")
    with pytest.raises(ValueError, match="max_errors must be at least 0"):
        TrainLoader("sample/noto", SIZE, 8, max_errors=-1)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "\t\r\n", "\u00a0\u3000", "\ufeff", "\u200b", "\u200e\u200f", "\u2060\u200d"),
        *("\x00\x01", "\x1b[0m", "\x7f", "\u00ad", "\u034f", "\u3164", "\u2800", "\ufe0f"),
        *("&nbsp;", "&#8203;", "&shy; &zwnj;", "\u2028", "\U000e0041", "\ufffc", "\u061c"),
    ],
)
def test_is_blank_of_captions_that_say_nothing(text):
    assert is_blank(text)
    assert is_blank(f" {text} ")


@pytest.mark.parametrize(
    "text", ["a", "!", "&", "&amp;", "5", "é", "猫", "🏳️‍🌈", "a\u200b", "\u0301", "\ufffd", "·"]
)
def test_is_blank_not_of_captions_that_say_something(text):
    assert not is_blank(text)


def test_is_blank_of_whatever_becomes_no_token():
    texts = [chr(code) * 2 for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    lengths = tokenize_with_lengths(texts)[1]
    none = [text for text, length in zip(texts, lengths.tolist(), strict=True) if length == 2]
    assert none
    assert all(map(is_blank, none))


def test_samples_without_a_member_are_told_once_with_a_name(tmp_path, caplog):
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(9):
            for suffix, data in (("jpg", good(number).image), ("txt", b"a caption")):
                if (number, suffix) in ((3, "txt"), (6, "jpg")):
                    continue
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    take(TrainLoader(str(shard), SIZE, 7, threads=1), 2)
    told = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(told) == 1
    assert "2 samples without image or caption are left out:" in told[0]
    assert "no caption: expected a txt member, found .jpg (sample '000003')" in told[0]
    assert "no image: expected a jpg/" in told[0]

"""Runs that leave broken samples out: all ranks know, each is named once, and a resume is exact."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clipfast.data import TrainLoader
from clipfast.engine.config import DataConfig
from clipfast.engine.skips import SKIPPED, Skips
from tests.campaigns.subject import RECIPE
from tests.data.broken import good, kinds, write_shard
from tests.engine.launching import losses, rows, train_in_turn
from tests.ranks import run_ranks

BAD = (3, 10, 17, 40, 41)


def shard(folder: Path) -> str:
    """48 samples, five of them broken in five ways."""
    samples = [good(i) for i in range(48)]
    for row, name in zip(
        BAD,
        ("html", "zero-width", "jpeg cut in its pixels", "one point", "not utf-8"),
        strict=True,
    ):
        samples[row] = kinds()[name]
    return write_shard(folder / "data.tar", samples)


def told(path: str, folder: str, most: int) -> dict:
    """What two ranks say and know after each batch of an epoch."""
    import torch.distributed as dist

    rank = dist.get_rank()
    loader = TrainLoader(
        *(path, 16, 8),
        rank=rank,
        world_size=2,
        threads=1,
        on_error="skip",
        on_skip=lambda skipped: None,
    )
    plan = SimpleNamespace(
        config=SimpleNamespace(data=DataConfig(on_error="skip", max_errors=most)),
        process=SimpleNamespace(world_size=2, is_main=rank == 0, device=torch.device("cpu")),
        folder=Path(folder),
    )
    skips, said, error = Skips(plan, loader), [], ""
    try:
        for _ in itertools.islice(loader, 6):
            skips.share(said.append)
    except ValueError as raised:
        error = str(raised)
    known = sorted(each.row for each in loader.skipped)
    return {"said": said, "error": error, "known": known, "lines": skips.lines()}


def test_skips_are_known_to_all_ranks_and_named_once(tmp_path):
    first, second = run_ranks(2, told, shard(tmp_path), str(tmp_path), 5)
    assert first["known"] == second["known"] == list(BAD)
    assert sorted(line[len("left out: sample '") :][:6] for line in first["said"]) == [
        f"{row:06d}" for row in BAD
    ]
    assert second["said"] == []
    assert first["error"] == second["error"] == ""
    assert first["lines"] == [
        f"5 broken samples were left out, and others took their place: {tmp_path / SKIPPED}"
    ]
    table = [line.split("\t") for line in (tmp_path / SKIPPED).read_text().splitlines()]
    assert table[0] == ["shard", "key", "reason"]
    assert sorted(key for _, key, _ in table[1:]) == [f"{row:06d}" for row in BAD]


def test_skips_end_all_ranks_where_they_are_too_many_together(tmp_path):
    # Each rank alone meets three at most.
    first, second = run_ranks(2, told, shard(tmp_path), str(tmp_path), 4)
    assert first["error"] == second["error"]
    assert "5 samples are broken, more than --data.max-errors 4" in first["error"]
    assert first["error"].count("    sample '0000") == 5


@pytest.mark.slow
def test_a_run_that_leaves_samples_out_goes_on_bit_for_bit(tmp_path):
    data = ("--data.train", shard(tmp_path), "--data.on-error", "skip", "--data.max-errors", "5")
    common = (*data, "--batch-size", "8", "--max-steps", "9", "--zero-stage", "1")
    saved = tmp_path / "saved" / "checkpoints" / "step00000005"
    train_in_turn(
        tmp_path,
        {
            "whole": common,
            "saved": (*common, "--checkpoint.every-steps", "5"),
            "resumed": (*common, "--resume", str(saved)),
        },
        ranks=2,
        recipe=str(RECIPE),
    )
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "saved") == whole
    assert losses(tmp_path / "resumed") == whole[5:]
    for name in ("whole", "saved", "resumed"):
        table = (tmp_path / name / SKIPPED).read_text().splitlines()[1:]
        assert sorted(line.split("\t")[1] for line in table) == [f"{row:06d}" for row in BAD]
        counts = [row["skipped_samples"] for row in rows(tmp_path / name)]
        assert counts == sorted(counts)
        assert counts[-1] == len(BAD)

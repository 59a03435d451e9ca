"""What is measured: a step of the demo's model on the sample, in batches far beyond the sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipfast.data.patterns import expand
from clipfast.data.shards import counts
from clipfast.engine import Config, DataConfig, ModelOptions, OptimizerConfig, ScheduleConfig

MODEL, SEED = "RN-tiny", 0
# Name in tables to what the second pass of a step is given.
FORMS = {
    "crops": "crops kept",
    "files": "files kept, decoded twice",
    "whole": "whole share decoded at once",
}


@dataclass(frozen=True)
class Case:
    """One step's sizes.

    Attributes:
        form: One of :data:`FORMS`.
        batch: Pairs.
        micro_batch: Pairs that are encoded at a time.
    """

    form: str
    batch: int
    micro_batch: int


def repeated_sample(folder: Path, pairs: int) -> list[str]:
    """The embedded sample's shards under so many names that an epoch has enough pairs.

    A picture comes again with another crop: those are drawn by place in the epoch.

    Args:
        folder: For links.
        pairs: At the least.

    Returns:
        Paths of shards.
    """
    shards = [Path(shard) for shard in expand("sample")]
    once = int(counts([str(shard) for shard in shards]).sum())
    paths = []
    for copy in range(-(-pairs // once)):
        for shard in shards:
            for path in (shard, shard.with_suffix(".idx")):
                link = folder / f"{copy:03d}-{path.name}"
                if path.exists() and not link.exists():
                    link.symlink_to(path)
            paths.append(str(folder / f"{copy:03d}-{shard.name}"))
    return paths


def config_of(case: Case, shards: list[str]) -> Config:
    """The run of a case; its crops are cut at random, half the picture at the least."""
    return Config(
        model=ModelOptions(MODEL),
        data=DataConfig(train=tuple(shards), scale=(0.5, 1.0)),
        optimizer=OptimizerConfig(lr=7e-4, beta2=0.98),
        schedule=ScheduleConfig(epochs=100, warmup_steps=10),
        batch_size=case.batch,
        micro_batch=case.micro_batch,
        seed=SEED,
    )

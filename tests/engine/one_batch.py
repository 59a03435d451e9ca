"""The demo's recipe on random pairs that come again each epoch, so that they can be learnt.

python -m tests.engine.one_batch --batch-size 64 --max-steps 12
python -m tests.engine.one_batch RUNS.json      # one after another: [[options], [options]]

It needs no package for data, so that any machine with DeepSpeed runs it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from clipfast.data import SyntheticLoader
from clipfast.data.batch import ImageTextBatch
from clipfast.engine import main
from clipfast.engine.builders import Builders
from clipfast.engine.cli import parse
from clipfast.engine.launch import current_process, start
from clipfast.engine.plan import RunPlan, decide
from recipes.emoji import config as demo


class OneEpoch(SyntheticLoader):
    """Every epoch is the first."""

    def _make(self, epoch: int, index: int) -> ImageTextBatch:
        return super()._make(0, index)


def loader(plan: RunPlan) -> OneEpoch:
    """One global batch an epoch."""
    return OneEpoch(
        plan.config.batch_size,
        plan.architecture.vision.image_size,
        plan.config.batch_size,
        rank=plan.process.rank,
        world_size=plan.process.world_size,
        seed=plan.config.seed,
        device=plan.process.device,
        dtype=plan.dtype,
        micro_batch=plan.micro_batch,
    )


def train_in_turn(runs: Sequence[Sequence[str]]) -> None:
    """Runs in one process: starting it takes longer than some steps of a tiny model."""
    from clipfast.engine.trainer import Trainer

    process = current_process()
    start(process)
    for options in runs:
        trainer = Trainer(decide(parse(demo(), options), process), Builders(loader=loader))
        trainer.run()
        trainer.engine.destroy()


if __name__ == "__main__":
    if sys.argv[1].endswith(".json"):
        train_in_turn(json.loads(Path(sys.argv[1]).read_text()))
    else:
        main(demo(), builders=Builders(loader=loader))

"""The demo's recipe on random pairs that come again each epoch, so that they can be learnt.

python -m tests.engine.one_batch --batch-size 64 --max-steps 12

It needs no package for data, so that any machine with DeepSpeed runs it.
"""

from clipfast.data import SyntheticLoader
from clipfast.data.batch import ImageTextBatch
from clipfast.engine import Config, main
from clipfast.engine.builders import Builders
from clipfast.engine.plan import RunPlan
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


def config() -> Config:
    """The demo's."""
    return demo()


if __name__ == "__main__":
    main(config(), builders=Builders(loader=loader))

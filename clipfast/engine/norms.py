"""Which pairs a batch norm takes together, decided from what was asked for.

Ranks hold consecutive parts of the global batch, and micro-batches are consecutive parts of those.
So N consecutive pairs of the global batch are encoded together, on any number of ranks, where N
divides the micro-batch; and by neighbouring ranks together where each of them encodes its whole
share at once. Other groups never stand in memory at the same time.
"""

from dataclasses import dataclass

from clipfast.engine.ranges import ConfigError


@dataclass(frozen=True)
class NormPlan:
    """Which pairs a batch norm takes together.

    Attributes:
        groups: parts of a micro-batch, each with statistics of its own.
        ranks: neighbours that share them.
        once_a_step: running statistics move once a step, for all groups.
    """

    groups: int = 1
    ranks: int = 1
    once_a_step: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether they are others than those of a rank's micro-batch."""
        return self != NormPlan()


def plan_norms(
    sync_bn: bool, bn_batch: int | None, ranks: int, local_batch: int, micro_batch: int
) -> NormPlan:
    """What ``--model.sync-bn`` and ``--bn-batch`` ask for.

    Args:
        sync_bn: all ranks share.
        bn_batch: pairs N of the global batch that share; None: not asked for.
        ranks: of the run.
        local_batch: pairs on a rank.
        micro_batch: pairs that a rank encodes at a time.

    Raises:
        ConfigError: N pairs in a row are never encoded together; the message has what would work.
    """
    if bn_batch is None:
        return NormPlan(ranks=ranks if sync_bn else 1)
    if micro_batch % bn_batch == 0:
        return NormPlan(groups=micro_batch // bn_batch, once_a_step=True)
    neighbours, rest = divmod(bn_batch, local_batch)
    if micro_batch == local_batch and not rest and ranks % neighbours == 0:
        return NormPlan(ranks=neighbours, once_a_step=True)
    works = [f"--bn-batch {micro_batch} or a divisor of it"]
    if bn_batch < local_batch and local_batch % bn_batch == 0:
        works.append(f"--micro-batch {bn_batch}")
    elif micro_batch < local_batch:
        works.append("no --micro-batch, and ranks that hold N pairs together")
    else:
        works.append(f"a multiple of {local_batch} that {local_batch * ranks} is a multiple of")
    raise ConfigError(
        f"--bn-batch {bn_batch}: these pairs of the global batch are never encoded together by "
        f"{ranks} ranks that encode {micro_batch} of their {local_batch} pairs at a time. Pass "
        f"{'; or '.join(works)}"
    )

"""How fast a machine computes the parts of a step."""

from typing import Protocol

from clipfast.engine.plan import RunPlan
from clipfast.engine.state_bytes import StateBytes
from clipfast.loss.traffic import Transfer
from clipfast.loss.workspace import share_of
from clipfast.plan.flop import loss_flop, pass_flop
from clipfast.plan.links import links_of
from clipfast.plan.machines import Machine


class Rates(Protocol):
    """What a plan asks of a machine."""

    @property
    def process(self) -> int:
        """Bytes that a rank holds of programs and libraries; 0 where the machine's room leaves them
        out already."""

    def compute(self, plan: RunPlan, caption_tokens: int, states: StateBytes) -> dict[str, float]:
        """Seconds of each part of a step."""

    def travel(self, plan: RunPlan, transfer: Transfer) -> float:
        """Seconds of a transfer, all its times together."""


class StatedRates:
    """GPUs, at a stated share of their peak.

    Args:
        machine: its cards and servers.
        utilisation: FLOP per second over the peak of the run's type.
    """

    def __init__(self, machine: Machine, utilisation: float) -> None:
        self._machine = machine
        self._utilisation = utilisation

    @property
    def process(self) -> int:
        """See `Rates`."""
        return 0

    def compute(self, plan: RunPlan, caption_tokens: int, states: StateBytes) -> dict[str, float]:
        """See `Rates`."""
        peak = self._machine.peak(plan)
        assert peak is not None
        rate = peak * self._utilisation / plan.local_batch
        towers = pass_flop(plan.architecture, caption_tokens, plan.recompute)
        parts = {
            "text forward": towers.text_forward / rate,
            "image forward": towers.image_forward / rate,
        }
        if plan.micro_batches > 1:
            parts["features, without a graph"] = sum(parts.values())
        products = 6 if _keeps_logits(plan) else 8
        loss = loss_flop(plan.config.batch_size, plan.architecture.embed_dim, products)
        parts["loss"] = loss / rate
        parts["image backward"] = towers.image_backward / rate
        parts["text backward"] = towers.text_backward / rate
        parts["optimizer"] = optimizer_bytes(plan, states) / self._machine.bandwidth
        return parts

    def travel(self, plan: RunPlan, transfer: Transfer) -> float:
        """See `Rates`."""
        return links_of(self._machine, plan.process.world_size).seconds(transfer)


def optimizer_bytes(plan: RunPlan, states: StateBytes) -> float:
    """Bytes that a rank reads and writes to update its part: the gradient as it came and in the
    optimizer's type, states and weights twice.

    Args:
        plan: of the run.
        states: of a rank.
    """
    ranks = plan.process.world_size
    share = ranks if plan.stage > 0 else 1
    weights = states.weights if plan.stage == 3 else states.weights / share
    return 3 * weights + 2 * states.optimizer


def _keeps_logits(plan: RunPlan) -> bool:
    gpu = plan.process.planned
    logits = plan.local_batch * plan.config.batch_size * max(2, plan.dtype.itemsize)
    return gpu is not None and logits <= share_of(gpu.memory, gpu.memory)

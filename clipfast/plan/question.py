"""What is asked of a plan beside the recipe, and the run's decisions on a machine elsewhere."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from clipfast.engine.config import Config
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan, decide
from clipfast.loss.workspace import planned_memory
from clipfast.plan.machines import Machine, device_of
from clipfast.plan.supply import DECODED_PER_CORE, KILOBYTES

# The share of a card's peak in half precision that the towers reach. Measured on an H200:
# ViT-B/32 0.24 at a batch of 512, RN50 0.13 at 256; published runs imply 0.1 to 0.2.
UTILISATION = 0.25
# Of the paper: 400 million pairs.
PAIRS = 400_000_000


@dataclass(frozen=True)
class Question:
    """A run, and what it is to be planned with.

    Attributes:
        config: the recipe's, with what the command line changed.
        machine: its cards and servers.
        gpus: how many of them, one rank each.
        caption_tokens: of every caption, start and end included.
        pairs: of an epoch.
        utilisation: FLOP of the towers per second over the card's peak.
        kilobytes: of an encoded pair.
        decoded_per_core: pictures that a core decodes per second.
    """

    config: Config
    machine: Machine
    gpus: int
    caption_tokens: int
    pairs: int = PAIRS
    utilisation: float = UTILISATION
    kilobytes: float = KILOBYTES
    decoded_per_core: float = DECODED_PER_CORE

    @property
    def process(self) -> Process:
        """The first rank of the run."""
        local = min(self.gpus, self.machine.per_node)
        return Process(0, 0, self.gpus, local, device_of(self.machine), self.machine.gpu)


def decided(question: Question) -> tuple[RunPlan, list[str]]:
    """The run's decisions.

    Returns:
        The plan, and lines on what had to be changed for it.

    Raises:
        ConfigError: as the run itself would.
    """
    config, ranks, notes = question.config, question.gpus, []
    if rest := config.batch_size % ranks:
        padded = config.batch_size + ranks - rest
        notes.append(
            f"--batch-size {config.batch_size} does not divide by {ranks} ranks: planned with "
            f"--batch-size {padded}, which the run needs too"
        )
        config = replace(config, batch_size=padded)
    return decide(config, question.process), notes


def on_machine(machine: Machine) -> AbstractContextManager[None]:
    """Inside, what a loss may take follows from this machine's memory."""
    return planned_memory(machine.gpu.memory if machine.gpu else None)

"""What a rank knows of itself before it looks at anything."""

import socket
from dataclasses import dataclass, field
from typing import Any

import torch

from clipfast.doctor.exchange import Exchange
from clipfast.doctor.options import DoctorConfig
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan


@dataclass
class Situation:
    """This rank, its options, and what earlier checks have left for later ones.

    Attributes:
        config: what was asked for; the doctor's own values where that cannot be.
        process: this rank, on a CPU where it has no GPU of its own.
        plan: of the run; None where there can be none.
        problems: what is wrong with options or process, by the check that says it.
        exchange: with the other ranks.
        notes: figures of earlier checks on this rank.
    """

    config: DoctorConfig
    process: Process
    plan: RunPlan | None
    problems: dict[str, str]
    exchange: Exchange
    host: str = field(default_factory=socket.gethostname)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.process.device

    @property
    def on_gpu(self) -> bool:
        """Whether that is a GPU."""
        return self.process.device.type == "cuda"

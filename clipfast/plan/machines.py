"""Machines to plan for: a card, its memory, and how cards are tied together.

Memory is what torch reports of the card, less than what its name says. Links are those of NVIDIA's
own servers (DGX-1, DGX A100, DGX H100) and for L40S of a PCIe 4.0 server with two ports of 200
Gbit/s; each figure is one direction.

    card        memory GiB   TB/s    per GPU, inside       per node, outside
    V100 SXM2   15.8, 31.7   0.900   NVLink 2, 150 GB/s    4 x 100 Gbit/s
    A100 SXM4   39.4         1.555   NVLink 3, 300 GB/s    8 x 200 Gbit/s
    A100 SXM4   79.1         2.039   NVLink 3, 300 GB/s    8 x 200 Gbit/s
    H100 SXM5   79.1         3.35    NVLink 4, 450 GB/s    8 x 400 Gbit/s
    H200 SXM5   139.8        4.8     NVLink 4, 450 GB/s    8 x 400 Gbit/s
    L40S        44.4         0.864   PCIe 4.0, 32 GB/s     2 x 200 Gbit/s

Sources: NVIDIA's data sheets of the cards and servers; rates of products stand in
``clipfast.cards``.
"""

from dataclasses import dataclass

import torch

from clipfast.cards import peak_flop
from clipfast.devices import PlannedGpu
from clipfast.engine.plan import RunPlan
from clipfast.names import did_you_mean

_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """A kind of GPU and how those of a run are tied together.

    Attributes:
        gpu: what decisions ask of it; None is this CPU.
        bandwidth: of its memory, bytes/s, read and written together.
        per_node: GPUs in a server.
        inside: bytes/s of a GPU to the others of its server, one direction.
        outside: bytes/s of a server to the others, one direction.
    """

    gpu: PlannedGpu | None
    bandwidth: float
    per_node: int
    inside: float
    outside: float

    @property
    def name(self) -> str:
        """For a person."""
        return self.gpu.name if self.gpu else "this CPU"

    def peak(self, plan: RunPlan) -> float | None:
        """FLOP/s of products in a run's type; None for a CPU."""
        return peak_flop(self.name, plan.dtype, plan.uses_tf32) if self.gpu else None


def _machine(
    name: str,
    capability: tuple[int, int],
    gib: float,
    terabytes: float,
    inside: float,
    gigabits: float,
) -> Machine:
    gpu = PlannedGpu(name, capability, int(gib * _GIB))
    return Machine(gpu, terabytes * 1e12, 8, inside * 1e9, gigabits * 1e9 / 8)


_V100, _A100, _H100, _L40S = (7, 0), (8, 0), (9, 0), (8, 9)
MACHINES = {
    "v100-16gb": _machine("V100-SXM2-16GB", _V100, 15.8, 0.900, 150, 4 * 100),
    "v100-32gb": _machine("V100-SXM2-32GB", _V100, 31.7, 0.900, 150, 4 * 100),
    "a100-40gb": _machine("A100-SXM4-40GB", _A100, 39.4, 1.555, 300, 8 * 200),
    "a100-80gb": _machine("A100-SXM4-80GB", _A100, 79.1, 2.039, 300, 8 * 200),
    "h100": _machine("H100-SXM5-80GB", _H100, 79.1, 3.35, 450, 8 * 400),
    "h200": _machine("H200-SXM5-141GB", _H100, 139.8, 4.8, 450, 8 * 400),
    "l40s": _machine("L40S", _L40S, 44.4, 0.864, 32, 2 * 200),
}
CPU = "cpu"
# Its ranks share this machine; what it does per second is measured.
THIS_CPU = Machine(None, 0.0, 1 << 30, 0.0, 0.0)


def machine_of(name: str) -> Machine:
    """A machine by the name that ``--gpu`` takes.

    Raises:
        ValueError: there is none of that name; the message has all of them.
    """
    if name == CPU:
        return THIS_CPU
    if name not in MACHINES:
        known = ", ".join([*MACHINES, CPU])
        raise ValueError(
            f"--gpu {name}: no such card.{did_you_mean(name, MACHINES)} Known: {known}"
        )
    return MACHINES[name]


def device_of(machine: Machine) -> torch.device:
    """Where a run on this machine computes."""
    return torch.device("cuda", 0) if machine.gpu else torch.device("cpu")

"""What the collectives of a loss move, by count: the same collectives as in `distributed.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from clipfast.ops.contrastive import choose

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]


@dataclass(frozen=True)
class Transfer:
    """A collective of a step, or several of one kind.

    Attributes:
        what: is moved, for a person.
        kind: of collective.
        bytes: of the whole tensor, all times together: what is reduced, what comes out of an
            all_gather, what goes into a reduce_scatter.
        times: how often; the latency of a collective counts each time.
        behind: what the ranks compute meanwhile, on GPUs; empty where they wait. On a CPU they
            always wait.
    """

    what: str
    kind: Kind
    bytes: int
    times: int = 1
    behind: str = ""

    def sent(self, ranks: int) -> float:
        """Bytes that each rank puts on the wire, with the ring's algorithm, which none beats.

        An all_reduce is a reduce_scatter and an all_gather: twice (W - 1) / W of the tensor.

        Args:
            ranks: W.
        """
        return (2 if self.kind == "all_reduce" else 1) * self.bytes * (ranks - 1) / ranks


def contrastive_transfers(
    global_batch: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    autocast: bool,
    behind_towers: bool,
) -> list[Transfer]:
    """What `clip_loss` moves in a forward and a backward pass over more ranks than one.

    Args:
        global_batch: G.
        width: D.
        dtype: of the features.
        device: where they are; none of the kind need be there.
        autocast: the loss runs under autocast to half precision.
        behind_towers: the image tower runs between the gather and the loss, and backward again.

    Returns:
        The texts' rows and their norms, the columns' maxima and sums, the texts' gradient.
    """
    if device.type == "cuda":
        item = 2 if autocast or dtype.itemsize == 2 else 4
    else:
        # Which type a CPU multiplies depends on its instructions.
        item = (
            choose("auto", torch.empty(1, width, dtype=dtype), autocast).work_dtype or dtype
        ).itemsize
    forward, backward = ("image tower", "image tower's backward") if behind_towers else ("", "")
    return [
        Transfer("text features", "all_gather", global_batch * width * item, behind=forward),
        Transfer("text norms", "all_gather", global_batch * 4, behind=forward),
        Transfer("column maxima", "all_reduce", global_batch * 4),
        Transfer("column sums", "all_reduce", (2 * global_batch + 1) * 4),
        Transfer("text gradients", "reduce_scatter", global_batch * width * 4, behind=backward),
    ]

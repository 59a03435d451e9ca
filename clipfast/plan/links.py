"""How long collectives take: the alpha-beta model of NCCL's rings.

    seconds = times * hops * alpha  +  bytes sent by a rank / beta

    hops    W - 1 for all_gather and reduce_scatter, 2 (W - 1) for a ring's all_reduce, of which
            only one per node leaves it; a tree's 2 log2(nodes) where that is less
    beta    the slower of a GPU's link inside and its node's link outside: a ring leaves a node
            once, so that a node's ports serve one of its GPUs' worth of bytes

Bytes are those of ``clipfast.engine.traffic``. Latencies are those that NCCL's own tuning starts
from, rounded: some microseconds a hop inside a server, ten between servers.
"""

import math
from dataclasses import dataclass

from clipfast.loss.traffic import Transfer
from clipfast.plan.machines import Machine

# Of a link's rate, what NCCL's bandwidth tests reach with large messages.
ACHIEVED = 0.8
_ALPHA_INSIDE, _ALPHA_OUTSIDE = 3e-6, 10e-6


@dataclass(frozen=True)
class Links:
    """What ties the ranks of a run.

    Attributes:
        ranks: W.
        nodes: servers.
        bytes_per_second: beta.
        inside: seconds of a hop inside a server.
        outside: seconds of a hop between servers.
    """

    ranks: int
    nodes: int
    bytes_per_second: float
    inside: float = _ALPHA_INSIDE
    outside: float = _ALPHA_OUTSIDE

    def seconds(self, transfer: Transfer) -> float:
        """Of all times together that a collective takes place in a step."""
        if self.ranks == 1:
            return 0.0
        sent = transfer.sent(self.ranks) / self.bytes_per_second
        return sent + transfer.times * self._latency(transfer.kind == "all_reduce")

    def _latency(self, is_reduced_everywhere: bool) -> float:
        between = self.nodes if self.nodes > 1 else 0
        ring = (self.ranks - 1 - between) * self.inside + between * self.outside
        if not is_reduced_everywhere:
            return max(ring, self.inside)
        local = self.ranks // self.nodes
        tree = math.log2(self.nodes) * self.outside + (local - 1) * self.inside
        return 2 * min(ring, tree)


def links_of(machine: Machine, ranks: int) -> Links:
    """The links of so many GPUs of a machine, filled node by node.

    Args:
        machine: its cards and servers.
        ranks: W.
    """
    nodes = -(-ranks // machine.per_node)
    rate = machine.inside if nodes == 1 else min(machine.inside, machine.outside)
    return Links(ranks, nodes, rate * ACHIEVED)

"""Few rows of many features, in as many coordinates as there are rows."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.eval.probe.rows import Part, Rows


class RowSpace:
    """An orthonormal basis of what some rows span.

    The penalty pulls every other direction to the prior, so the minimum lies here. It is the same
    minimum: the basis keeps lengths and products.

        x = Q r,   W = W0 + (W_r - W0 Q) Q^T

    Args:
        rows: fewer than they have features.
    """

    def __init__(self, rows: Rows) -> None:
        x = torch.cat([part.read(0, len(part)).to(rows.device).double() for part in rows.parts])
        basis, _ = torch.linalg.qr(x.T)
        self.basis = basis
        reduced = (x @ basis).float()
        self.rows = Rows((Part(reduced),), rows.device, name=rows.name)

    def reduce(self, weight: Tensor | None) -> Tensor | None:
        """``[..., D]`` to ``[..., R]``."""
        return None if weight is None else weight.to(self.basis) @ self.basis

    def expand(self, weight: Tensor, prior: Tensor | None) -> Tensor:
        """``[..., R]`` to ``[..., D]``.

        Args:
            weight: of the reduced rows.
            prior: ``[..., D]``, what it was pulled to.
        """
        if prior is None:
            return weight @ self.basis.T
        prior = prior.to(self.basis)
        return prior + (weight - prior @ self.basis) @ self.basis.T

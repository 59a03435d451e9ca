"""Linear classifiers, and what they say of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipfast.eval.probe.rows import Rows


@dataclass(frozen=True, eq=False)
class Classifiers:
    """Linear classifiers of one shape, such as one per lambda.

    Attributes:
        weight: ``[L, C, D]`` float64.
        bias: ``[L, C]`` float64; -inf for a class that had no rows to learn from.
        is_softmax: whether a row has one class; otherwise each class is a question of its own.
    """

    weight: Tensor
    bias: Tensor
    is_softmax: bool

    def __len__(self) -> int:
        """L."""
        return len(self.weight)

    def take(self, number: int) -> Classifiers:
        """One of them, as a row of one."""
        where = slice(number, number + 1)
        return Classifiers(self.weight[where], self.bias[where], self.is_softmax)

    @torch.no_grad()
    def scores(self, rows: Rows, number: int = 0) -> Tensor:
        """Logits ``[N, C]`` float32 of one classifier, on the CPU."""
        weight, bias = self._on(rows)
        weight, bias = weight[number].float(), bias[number].float()
        return torch.cat(
            [(piece @ weight.T + bias).cpu() for _, piece in rows.pieces(columns=len(weight))]
        )

    @torch.no_grad()
    def predictions(self, rows: Rows) -> Tensor:
        """Classes ``[L, N]`` int64 of all classifiers, in one pass; of equals the first class."""
        count, classes, dim = self.weight.shape
        weight, bias = self._on(rows)
        flat, bias = weight.reshape(-1, dim).float(), bias.float()[..., None]
        found = []
        for _, piece in rows.pieces(columns=count * classes):
            logits = (flat @ piece.T).view(count, classes, -1) + bias
            found.append(logits.argmax(1).cpu())
        return torch.cat(found, 1)

    @torch.no_grad()
    def probabilities(self, rows: Rows, number: int = 0) -> Tensor:
        """``[N, C]`` float32 of one classifier; of one class per row they add up to 1."""
        scores = self.scores(rows, number)
        return scores.softmax(1) if self.is_softmax else scores.sigmoid()

    def _on(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Weights and biases beside some rows, for what their pieces are."""
        weight = self.weight.to(rows.device)
        return weight, self.bias.to(rows.device) + rows.shift(weight)

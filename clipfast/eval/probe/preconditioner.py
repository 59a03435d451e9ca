"""An approximate inverse Hessian: L-BFGS then needs tens of iterations in place of hundreds."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.eval.probe.objective import Objective

_FLOOR = 1e-6  # of the mean eigenvalue: below it, float32 gradients are noise


class Preconditioner:
    """Each class's block of the Hessian, taken as its curvature times the covariance.

        H_c ~ h_c U diag(e) U^T + lambda / N,   h_c = sqrt(h h_0)
        covariance of the rows = U diag(e) U^T
        h = mean of p_c (1 - p_c) over the rows, h_0 = the same where all classes are as likely

    The exact block has h. Where classes are told apart, h falls so fast along a step that a step of
    its length is far too long. The root with h_0 took the fewest passes.

    It is where L-BFGS starts from in each iteration, in place of a multiple of the identity. It
    changes the path and not the minimum. Image features are far from white, so the path is much
    shorter. It costs two products with U, about 2 D / N of a pass over the rows.

    Args:
        objective: whose Hessian.
    """

    def __init__(self, objective: Objective) -> None:
        mean, covariance = objective.rows.moments()
        if not objective.bias:
            covariance = covariance + mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance.float())
        share = 1.0 / objective.classes if objective.is_softmax else 0.5
        self._even = share * (1.0 - share)
        self._strength = objective.strength
        self._vectors = vectors
        self._values = values.double().clamp(min=0.0)
        self._floor = _FLOOR * float(self._values.mean()) + torch.finfo(torch.float64).tiny

    def __call__(self, gradient: Tensor, curvature: Tensor, problems: Tensor) -> Tensor:
        """The approximate inverse Hessian times a vector.

        Args:
            gradient: ``[A, C, D + 1]`` float64.
            curvature: ``[A, C]``, of ``Evaluated``.
            problems: ``[A]`` int64.
        """
        # A class that is told apart perfectly has no curvature left to divide by.
        h = (self._even * curvature.clamp(min=1e-9)).sqrt()[..., None]
        scale = h * self._values.clamp(min=self._floor) + self._strength[problems][:, None, None]
        rotated = (gradient[..., :-1].float() @ self._vectors).double() / scale
        weights = (rotated.float() @ self._vectors.T).double()
        return torch.cat([weights, gradient[..., -1:] / h], dim=-1)

"""Logistic regression with L2, for several strengths at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.labels import Targets, as_targets, present_classes
from clipfast.eval.probe.lbfgs import Minimum, minimise
from clipfast.eval.probe.objective import Evaluated, Objective
from clipfast.eval.probe.preconditioner import Preconditioner
from clipfast.eval.probe.rows import Features, Rows, as_rows
from clipfast.eval.probe.rowspace import RowSpace


@dataclass(frozen=True, eq=False)
class Fits:
    """Classifiers, one per lambda, and how their fits ended.

    Attributes:
        lambdas: L strengths, in the order that was asked for.
        classifiers: L of them.
        iterations: of each.
        gradient_norm: the largest absolute value of each gradient of the mean loss.
        converged: whether that is within the tolerance.
        passes: over the rows, of all together.
    """

    lambdas: tuple[float, ...]
    classifiers: Classifiers
    iterations: tuple[int, ...]
    gradient_norm: tuple[float, ...]
    converged: tuple[bool, ...]
    passes: int


@torch.no_grad()
def fit(
    features: Features | Rows,
    labels: Any,
    lambdas: Sequence[float],
    *,
    classes: int | None = None,
    classnames: Sequence[str] | None = None,
    prior: Tensor | None = None,
    bias: bool = True,
    start: Classifiers | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    device: torch.device | str = "cpu",
    on_pass: Callable[[], None] | None = None,
) -> Fits:
    """Minimise sum_i CE(W x_i + b, y_i) + lambda / 2 |W - W0|^2 over W and b, for each lambda.

    Equal to scikit-learn's ``LogisticRegression(C=1 / lambda, max_iter=1000, tol=1e-4)``: its
    objective is C times the sum of losses plus |W|^2 / 2. ``tolerance`` means what its ``tol``
    does, a bound on the gradient of the mean loss. With two classes W has one row, that of class 1
    against class 0, as there. The bias is not regularized.

    Args:
        features: ``[N, D]`` of any float type, also memory-mapped; read in pieces.
        labels: ``[N]`` integers; or ``[N, C]`` bool for one binary problem per class.
        lambdas: strengths, each above 0.
        classes: C; None takes it from the labels.
        classnames: C names, for messages.
        prior: W0 ``[C, D]``, such as a zero-shot classifier times its scale; None is zero.
        bias: whether there is one.
        start: L classifiers to start from; None starts from the prior.
        tolerance: for the largest absolute value of the gradient.
        max_iterations: of L-BFGS, per lambda.
        device: where the products run.
        on_pass: called before each pass over the features.

    Raises:
        ValueError: a lambda, a shape or a label does not fit, a feature is not finite, or there are
            fewer than two classes.
    """
    rows = as_rows(features, device)
    targets = as_targets(labels, classes, len(rows))
    if not lambdas or not all(0.0 < value < float("inf") for value in lambdas):
        raise ValueError(f"lambdas: expected numbers above 0, got {list(lambdas)}")
    expected = (targets.classes, rows.dim)
    if prior is not None and tuple(prior.shape) != expected:
        raise ValueError(f"prior: expected {list(expected)}, got {list(prior.shape)}")
    # A prior alone says enough of a class without rows, unless its bias may fall for ever.
    every = prior is not None and not bias
    present = list(range(targets.classes)) if every else present_classes(targets, classnames)
    form = _Form(targets, present)
    packed_prior = form.pack_weight(prior)
    space = _row_space(rows)

    def evaluate(parameters: Tensor, problems: Tensor) -> Evaluated:
        if on_pass is not None:
            on_pass()
        return objective.evaluate(parameters, problems)

    with _full_float32():
        objective = Objective(
            rows if space is None else space.rows,
            form.solver_targets(rows.device),
            form.columns,
            lambdas,
            packed_prior if space is None else space.reduce(packed_prior),
            bias,
        )
        found = minimise(
            evaluate,
            Preconditioner(objective),
            form.start(objective, start, space, len(lambdas)),
            tolerance,
            max_iterations,
        )
    _say_what_did_not_converge(lambdas, found, tolerance)
    weight = found.parameters[..., :-1]
    biases = found.parameters[..., -1]
    if bias:
        biases = biases - objective.rows.shift(weight)
    if space is not None:
        weight = space.expand(weight, packed_prior)
    return Fits(
        tuple(lambdas),
        form.unpack(weight.cpu(), biases.cpu()),
        found.iterations,
        found.gradient_norm,
        found.converged,
        objective.passes,
    )


def _row_space(rows: Rows) -> RowSpace | None:
    if len(rows) >= rows.dim:
        return None
    rows.moments()  # refuses what is not finite
    return RowSpace(rows)


class _Form:
    """How C classes become the solver's columns: those with rows; one column for two classes."""

    def __init__(self, targets: Targets, present: list[int]) -> None:
        self.targets, self.present = targets, present
        self.is_binary = targets.is_softmax and len(present) == 2
        self.columns = 1 if self.is_binary else len(present)

    def solver_targets(self, device: torch.device) -> Tensor:
        """``[N]`` int64 of one class per row, else ``[N, columns]`` bool."""
        labels = self.targets.labels
        if self.is_binary:
            return (labels == self.present[1])[:, None].to(device)
        if not self.targets.is_softmax:
            return labels[:, self.present].to(device)
        place = torch.full((self.targets.classes,), -1)
        place[self.present] = torch.arange(len(self.present))
        return place[labels].to(device)

    def pack_weight(self, weight: Tensor | None) -> Tensor | None:
        """``[..., C, D]`` to the solver's columns."""
        if weight is None:
            return None
        weight = weight.double()[..., self.present, :]
        return weight[..., 1:, :] - weight[..., :1, :] if self.is_binary else weight

    def start(
        self,
        objective: Objective,
        start: Classifiers | None,
        space: RowSpace | None,
        count: int,
    ) -> Tensor:
        """The solver's parameters to begin with, ``[L, columns, D + 1]``."""
        dim, device = objective.rows.dim, objective.rows.device
        parameters = torch.zeros(count, self.columns, dim + 1, dtype=torch.float64, device=device)
        if start is not None:
            weight, bias = start.weight, start.bias[..., None]
            packed_weight, packed = self.pack_weight(weight), self.pack_weight(bias)
            if space is not None:
                packed_weight = space.reduce(packed_weight)
            assert packed_weight is not None
            assert packed is not None
            parameters[..., :dim] = packed_weight
            # A class that the start did not know begins at 0.
            known = packed.nan_to_num(0.0, 0.0, 0.0)[..., 0].to(device)
            parameters[..., dim] = known + objective.rows.shift(parameters[..., :dim])
        elif objective.prior is not None:
            parameters[..., :dim] = objective.prior
        if not objective.bias:
            parameters[..., dim] = 0.0
        return parameters

    def unpack(self, weight: Tensor, bias: Tensor) -> Classifiers:
        """All C classes again."""
        if self.is_binary:
            weight = torch.cat([-weight / 2, weight / 2], 1)
            bias = torch.cat([-bias / 2, bias / 2], 1)
        every = weight.new_zeros(len(weight), self.targets.classes, weight.shape[2])
        biases = weight.new_full(every.shape[:2], float("-inf"))
        every[:, self.present], biases[:, self.present] = weight, bias
        return Classifiers(every, biases, self.targets.is_softmax)


def _say_what_did_not_converge(lambdas: Sequence[float], found: Minimum, tolerance: float) -> None:
    late = [i for i, is_done in enumerate(found.converged) if not is_done]
    if late:
        told = "; ".join(
            f"lambda {lambdas[i]:.3g}: {found.gradient_norm[i]:.2g} after {found.iterations[i]}"
            for i in late
        )
        warnings.warn(
            f"the largest gradient is not within {tolerance:.2g} for {len(late)} of "
            f"{len(lambdas)} lambdas ({told} iterations): raise max_iterations or the tolerance",
            stacklevel=4,
        )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products without TF32, whatever a run has set.

    By the newer spelling where there is one: the older one refuses to be read after the two were
    mixed.
    """
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    places: list[Any] = [getattr(backend, "matmul", None) for backend in backends]
    newer = [place for place in places if hasattr(place, "fp32_precision")]
    before = [place.fp32_precision for place in newer]
    older = None if newer else torch.get_float32_matmul_precision()
    for place in newer:
        place.fp32_precision = "ieee"
    if older is not None:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        for place, said in zip(newer, before, strict=True):
            place.fp32_precision = said
        if older is not None:
            torch.set_float32_matmul_precision(older)

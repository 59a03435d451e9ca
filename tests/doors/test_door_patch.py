"""The door of patches: a toy model's table, written outside the package, in this one file.

The toy's slow parts are a product with a diagonal matrix and a mean written as a loop. The table
replaces the first in a module and the second in a method of a class.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clipfast.integrations import MethodReplacement, Patch, Patched, Replacement

BATCH, WIDTH = 5, 7


class Diagonal(nn.Module):
    """Slow: builds a matrix to scale each column."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.scale.diag()


class OtherDiagonal(Diagonal):
    pass


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Diagonal(), Diagonal()
        self.bias = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) + self.bias


class Head(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum(x) / len(x)


class InheritsItsForward(Head):
    pass


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = Tower(), Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(x))


class ScaledDiagonal(Patched):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class CountedTower(Patched):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


def make_mean(original: Callable) -> Callable:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x.mean(dim=0)

    return forward


def no_frozen_bias(tower: nn.Module) -> str | None:
    return None if tower.bias.requires_grad else "its bias is frozen"


TABLE = (
    Replacement(
        part="tower",
        path="tower",
        kind=Tower,
        by=CountedTower,
        what="diagonals scale columns",
        obstacle=no_frozen_bias,
        along={Diagonal: ScaledDiagonal},
    ),
    MethodReplacement("Head.forward", Head, "forward", make_mean, "one mean"),
)


def apply(model: nn.Module, table: tuple = TABLE) -> Patch:
    patch = Patch()
    for row in table:
        patch.apply(row, model)
    return patch


@pytest.fixture(autouse=True)
def unpatched_head():
    """A class is the process's: every test must give it back."""
    before = vars(Head)["forward"]
    yield
    assert vars(Head)["forward"] is before
    assert "forward" not in vars(InheritsItsForward)


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    out = model(x)
    out.sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters())]


def test_patch_of_a_toy_model_replaces_reports_and_undoes():
    model, x = Toy(), torch.randn(BATCH, WIDTH, dtype=torch.float64)
    kinds = {name: type(module) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    attributes = [set(vars(module)) for module in model.modules()]
    before = run(model, x)

    patch = apply(model)
    assert str(patch) == (
        "swapped     tower: diagonals scale columns\nswapped     Head.forward: one mean"
    )
    assert isinstance(model.tower, CountedTower)
    assert isinstance(model.tower, Tower)
    assert all(isinstance(m, ScaledDiagonal) for m in (model.tower.first, model.tower.second))
    assert all(parameters[name] is p for name, p in model.named_parameters())
    torch.testing.assert_close(run(model, x), before, rtol=1e-12, atol=1e-14)
    assert model.tower.calls == 1

    del model.tower.calls
    patch.undo()
    patch.undo()
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert [set(vars(module)) for module in model.modules()] == attributes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    for value, expected in zip(run(model, x), before, strict=True):
        assert torch.equal(value, expected)


def test_patch_of_a_toy_model_names_what_it_leaves_alone():
    model = Toy()
    model.tower.bias.requires_grad_(False)
    patch = apply(model)
    assert str(patch) == (
        "swapped     Head.forward: one mean\nleft alone  tower: its bias is frozen"
    )
    assert type(model.tower.first) is Diagonal
    patch.undo()
    model.tower = OtherDiagonal()
    assert apply(model, TABLE[:1]).left_alone == {"tower": "it is a OtherDiagonal"}
    del model.tower
    assert apply(model, TABLE[:1]).left_alone == {"tower": "the model has none"}


def test_patch_leaves_modules_within_of_other_classes_as_they_are():
    model = Toy()
    model.tower.second = OtherDiagonal()
    patch = apply(model, TABLE[:1])
    assert isinstance(model.tower.first, ScaledDiagonal)
    assert type(model.tower.second) is OtherDiagonal
    patch.undo()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_method_stays_replaced_while_one_patch_wants_it(order):
    original = Head.forward
    patches = [apply(Toy()), apply(Toy())]
    patches[order[0]].undo()
    assert Head.forward is not original
    patches[order[1]].undo()
    assert Head.forward is original


def test_method_that_another_patch_replaced_otherwise_is_left_alone():
    first = apply(Toy(), TABLE[1:])
    row = MethodReplacement("Head.forward", Head, "forward", lambda original: original, "nothing")
    second = apply(Toy(), (row,))
    assert "another patch" in second.left_alone["Head.forward"]
    second.undo()
    assert Head()(torch.ones(2, 3)).shape == (3,)
    first.undo()


def test_inherited_method_is_inherited_again_after_undo():
    row = MethodReplacement("mean", InheritsItsForward, "forward", make_mean, "one mean")
    patch = apply(Toy(), (row,))
    assert "forward" in vars(InheritsItsForward)
    patch.undo()
    assert InheritsItsForward.forward is Head.forward


def test_patched_toy_model_is_copied_patched_and_pickled_plain():
    model = Toy()
    patch = apply(model, TABLE[:1])
    assert isinstance(copy.deepcopy(model).tower.first, ScaledDiagonal)
    assert type(pickle.loads(pickle.dumps(model)).tower.first) is Diagonal
    patch.undo()

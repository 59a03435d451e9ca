"""Which parameter goes in which list, kept from one step to the next.

Sorting hundreds of parameters into lists takes Python longer than a GPU takes for the step. The
places that they were given hold as long as the groups, the formats and the set of states are the
same. No tensor and no address is kept: gradients and states are taken anew in every step, and
`clipfast.ops.adamw.lists` has each of them looked at, in C++.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipfast.optim.tensor_list import Options, TensorList

Groups = Sequence[dict[str, Any]]
States = Mapping[Tensor, dict[str, Any]]


class Place(NamedTuple):
    """Where a parameter stands: the number of its group, and its own among all parameters."""

    group: int
    param: int


class _Members(NamedTuple):
    """One list: its tensors' places, and the types that all of them have."""

    device: torch.device
    dtype: torch.dtype
    stats_dtype: torch.dtype
    kept: torch.dtype | None
    grid: str
    groups: list[int]
    params: list[int]  # among all parameters
    states: list[int]  # among all states
    starts: list[int]
    first_elements: list[int]


class Arrangement:
    """The lists of the last step, as places.

    Args:
        groups: of the optimizer.
        states: of the optimizer, after that step's lists were made.
        lists: these lists, and for each of their tensors its place.
    """

    def __init__(
        self, groups: Groups, states: States, lists: Sequence[tuple[TensorList, Sequence[Place]]]
    ) -> None:
        params = _all_params(groups)
        self._shape = _shape_of(groups, params, states)
        number = {id(param): number for number, param in enumerate(states)}
        used = {place.param for _, places in lists for place in places}
        self._without_grad = [i not in used for i in range(len(params))]
        self._lists = [
            _Members(
                *(tensors.device, tensors.dtype, tensors.stats_dtype, tensors.kept, tensors.grid),
                groups=sorted({place.group for place in places}),
                params=[place.param for place in places],
                states=[number[id(param)] for param in tensors.params],
                starts=tensors.starts,
                first_elements=tensors.first_elements,
            )
            for tensors, places in lists
        ]

    def fill(self, groups: Groups, states: States) -> list[TensorList] | None:
        """The lists of this step.

        Args: as of the class.

        Returns:
            What sorting all parameters anew would give; None where something has changed that
            only sorting anew finds or mends.
        """
        params = _all_params(groups)
        if _shape_of(groups, params, states) != self._shape:
            return None
        grads = [param.grad for param in params]
        if [grad is None for grad in grads] != self._without_grad:
            return None
        own = list(states.values())
        lists = []
        for members in self._lists:
            tensors = _filled(members, groups, params, grads, own)
            if tensors is None or not tensors.fits():
                return None
            lists.append(tensors)
        return lists


def _all_params(groups: Groups) -> list[Tensor]:
    return [*itertools.chain.from_iterable(group["params"] for group in groups)]


def _shape_of(groups: Groups, params: Sequence[Tensor], states: States) -> tuple[Any, ...]:
    # An id stays that of its object: the optimizer holds every parameter that it has numbered.
    formats = [
        (len(group["params"]), group["stats_dtype"], group["weights"], group["weights_dtype"])
        for group in groups
    ]
    return formats, list(map(id, params)), list(map(id, states))


def _filled(
    members: _Members,
    groups: Groups,
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[dict[str, Any]],
) -> TensorList | None:
    options = {Options(groups[i], members.dtype, members.grid) for i in members.groups}
    if len(options) != 1:
        return None
    tensors = TensorList(*members[:5], options.pop())
    own = [states[i] for i in members.states]
    # Neither fewer nor more: a master that should not be there would go on being passed over.
    keys = 3 + tensors.has_exponents + (tensors.master is not None)
    if list(map(len, own)) != [keys] * len(own):
        return None
    try:
        tensors.exp_avgs = [state["exp_avg"] for state in own]
        tensors.exp_avg_sqs = [state[tensors.second] for state in own]
        tensors.steps = [state["step"] for state in own]
        if tensors.has_exponents:
            tensors.exponents = [state["exponents"] for state in own]
        if tensors.master is not None:
            tensors.masters = [state[tensors.master] for state in own]
    except KeyError:
        return None
    tensors.params = [params[i] for i in members.params]
    tensors.grads = [grad for i in members.params if (grad := grads[i]) is not None]
    tensors.starts, tensors.first_elements = members.starts, members.first_elements
    return tensors

"""Lists that FusedAdamW keeps from step to step: whatever moves, the step is that of lists made
anew, bit for bit."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch.nn import Parameter

from clipfast import FusedAdamW
from clipfast.optim import fused_adamw
from tests.optim.fused_adamw_cases import assert_same_bits, contents, parameters, set_gradients

pytestmark = pytest.mark.needs("extension")

SHAPES = ((256,), (37, 23), (), (5,), (6, 5, 2, 2), (4, 3, 1, 1))


class Run:
    """Five steps, with something done before the fourth."""

    def __init__(self, dtype: torch.dtype = torch.float32, **options) -> None:
        self.params = parameters(dtype, SHAPES)
        groups = [{"params": self.params[::2]}, {"params": self.params[1::2], "lr": 0.02}]
        self.optimizer = FusedAdamW(groups, lr=0.02, **options)
        self.sorted: list[int] = []

    def go(self, change) -> list[torch.Tensor]:
        for step in range(5):
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            set_gradients(params, step)
            if step == 3:
                self.optimizer = change(self.optimizer, self.params) or self.optimizer
            self._count_sorting(step)
            self.optimizer.step()
        return contents(self.optimizer)

    def _count_sorting(self, step: int) -> None:
        sort = type(self.optimizer)._sort.__get__(self.optimizer)

        def counted():
            self.sorted.append(step)
            return sort()

        self.optimizer._sort = counted


def nothing(optimizer, params):
    pass


def new_gradients(optimizer, params):
    for param in params:
        param.grad = param.grad.clone() * 2


def no_gradient(optimizer, params):
    params[1].grad = None


def gradient_of_another_type(optimizer, params):
    params[1].grad_dtype = None
    params[1].grad = params[1].grad.half()


def gradient_of_another_order(optimizer, params):
    params[4].grad = params[4].grad.contiguous(memory_format=torch.channels_last)


def strides_of_size_one(optimizer, params):
    """As channels_last modules have them in 1x1 convolutions."""
    params[5].grad = params[5].grad.as_strided((4, 3, 1, 1), (3, 1, 3, 3))


def data_elsewhere(optimizer, params):
    for param in params:
        param.data = param.data.clone()


def data_of_other_values(optimizer, params):
    params[1].data = params[1].data.flip(0)


def data_of_another_type(optimizer, params):
    params[1].data = params[1].data.bfloat16()
    params[1].grad = params[1].grad.bfloat16()


def data_of_another_order(optimizer, params):
    for one in (params[4], params[4].grad):
        one.data = one.data.contiguous(memory_format=torch.channels_last)


def views_of_one_flat_tensor(optimizer, params):
    """As ZeRO lays parameters and gradients out."""
    for kind in ("data", "grad"):
        flat = torch.cat([getattr(param, kind).detach().flatten() for param in params])
        parts = flat.split([param.numel() for param in params])
        for param, part in zip(params, parts, strict=True):
            setattr(param, kind, part.view_as(param))


def storage_let_go_and_made_again(optimizer, params):
    """As sharded training does between steps."""
    for param in params:
        kept, storage = param.data.clone(), param.data.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        torch.empty(4096).fill_(torch.nan)
        storage.resize_(size)
        param.data.copy_(kept)


def parameter_replaced(optimizer, params):
    new = Parameter(params[1].detach() + 1)
    new.grad = params[1].grad
    optimizer.param_groups[1]["params"][0] = new


def parameters_in_another_order(optimizer, params):
    optimizer.param_groups[0]["params"].reverse()


def parameter_in_another_group(optimizer, params):
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups[1]["params"].append(moved)


def parameter_left_out(optimizer, params):
    optimizer.param_groups[0]["params"].pop(0)


def group_added(optimizer, params):
    new = Parameter(torch.ones(7, dtype=params[0].dtype))
    new.grad = torch.ones_like(new)
    optimizer.add_param_group({"params": [new], "lr": 0.5})


def rate_of_all_groups(optimizer, params):
    for group in optimizer.param_groups:
        group["lr"] = 0.001


def rate_of_one_group(optimizer, params):
    optimizer.param_groups[0]["lr"] = 0.001


def bound_of_one_group(optimizer, params):
    optimizer.param_groups[1]["maximum"] = 0.25


def statistics_of_another_type(optimizer, params):
    for group in optimizer.param_groups:
        group["stats_dtype"] = torch.float32


def weights_rounded_at_random(optimizer, params):
    for group in optimizer.param_groups:
        group.update(weights="stochastic", weights_dtype=torch.bfloat16)


def states_loaded(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def states_loaded_as_torch_keeps_them(optimizer, params):
    optimizer.load_state_dict(optimizer.adamw_state_dict())


def states_discarded(optimizer, params):
    optimizer.state.clear()


def state_discarded(optimizer, params):
    del optimizer.state[params[1]]


def state_in_another_place(optimizer, params):
    optimizer.state[params[1]] = optimizer.state.pop(params[1])


def state_replaced(optimizer, params):
    old = optimizer.state[params[1]]
    optimizer.state[params[1]] = {key: value.clone() for key, value in old.items()}


def moment_replaced(optimizer, params):
    state = optimizer.state[params[1]]
    state["exp_avg"] = torch.zeros_like(state["exp_avg"])


def moment_elsewhere(optimizer, params):
    state = optimizer.state[params[1]]
    state["exp_avg"].data = torch.ones_like(state["exp_avg"])


def moment_cast(optimizer, params):
    state = optimizer.state[params[1]]
    for key in ("exp_avg", "exp_avg_sqrt"):
        state[key].data = state[key].data.float()


def count_as_a_number(optimizer, params):
    optimizer.state[params[1]]["step"] = 17


def count_of_another_type(optimizer, params):
    state = optimizer.state[params[1]]
    state["step"] = state["step"].double()


def master_given(optimizer, params):
    optimizer.state[params[1]]["master"] = params[1].detach().float() + 0.5


def master_taken(optimizer, params):
    optimizer.state[params[1]].pop("master", None)


def master_cast(optimizer, params):
    for key in {"master", "remainder"} & set(optimizer.state[params[1]]):
        state = optimizer.state[params[1]]
        state[key].data = state[key].data.double()


def parameter_of_another_shape(optimizer, params):
    params[1].data = torch.ones(37, 24)
    params[1].grad = torch.ones(37, 24)


def foreign_entry(optimizer, params):
    optimizer.state[params[1]]["ema"] = torch.ones(3)


def deep_copy(optimizer, params):
    new = copy.deepcopy(optimizer)
    for group, old in zip(new.param_groups, optimizer.param_groups, strict=True):
        for param, source in zip(group["params"], old["params"], strict=True):
            param.grad = source.grad.clone()
    return new


def pickled(optimizer, params):
    del optimizer._sort
    new = pickle.loads(pickle.dumps(optimizer))
    set_gradients([p for group in new.param_groups for p in group["params"]], 3)
    return new


# Of these the lists of the step before still hold: contents moved, and no place.
HOLD = {
    *(nothing, new_gradients, strides_of_size_one, gradient_of_another_type, data_elsewhere),
    *(data_of_other_values, views_of_one_flat_tensor, storage_let_go_and_made_again),
    *(
        rate_of_all_groups,
        states_loaded,
        states_loaded_as_torch_keeps_them,
        state_replaced,
        moment_replaced,
        moment_elsewhere,
    ),
}
ANEW = {
    *(no_gradient, gradient_of_another_order, data_of_another_type, data_of_another_order),
    *(parameter_replaced, parameters_in_another_order, parameter_in_another_group),
    *(parameter_left_out, group_added, rate_of_one_group, bound_of_one_group),
    *(statistics_of_another_type, weights_rounded_at_random, states_discarded, state_discarded),
    *(state_in_another_place, moment_cast, count_as_a_number),
    *(count_of_another_type, master_given, foreign_entry, deep_copy, pickled),
}
CHANGES = sorted(HOLD | ANEW, key=lambda change: change.__name__)
# What concerns parameters in half precision, and their masters or remainders.
HALF = [nothing, data_elsewhere, master_given, master_taken, master_cast]


def assert_kept_equals_anew(monkeypatch, change, **options) -> Run:
    kept, anew = Run(**options), Run(**options)
    found = kept.go(change)
    monkeypatch.setattr(fused_adamw, "CAN_TELL", False)
    assert_same_bits(found, anew.go(change))
    assert anew.sorted == [0, 1, 2, 3, 4]
    assert kept.sorted[0] == 0
    assert not {1, 2} & set(kept.sorted)
    return kept


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_kept_lists_give_the_bits_of_lists_made_anew(monkeypatch, change):
    kept = assert_kept_equals_anew(monkeypatch, change)
    assert (3 in kept.sorted) == (change in ANEW)


@pytest.mark.parametrize("weights", ["fp32", "remainder", "stochastic"])
@pytest.mark.parametrize("change", HALF, ids=lambda change: change.__name__)
def test_kept_lists_of_half_parameters(monkeypatch, change, weights):
    options = {"dtype": torch.bfloat16, "weights": weights, "stats_dtype": torch.bfloat16}
    assert_kept_equals_anew(monkeypatch, change, **options)


def test_kept_lists_report_what_has_become_wrong():
    run = Run()
    with pytest.raises(ValueError, match="of the parameter's shape"):
        run.go(parameter_of_another_shape)
    assert run.sorted == [0, 3]


def test_kept_lists_keep_no_gradient_and_no_state_alive():
    run = Run()
    run.go(nothing)
    alive = [
        weakref.ref(tensor)
        for param in run.params
        for tensor in (param.grad, *run.optimizer.state[param].values())
    ]
    assert all(ref() is not None for ref in alive)
    for param in run.params:
        param.grad = None
    run.optimizer.state.clear()
    assert [ref() for ref in alive] == [None] * len(alive)

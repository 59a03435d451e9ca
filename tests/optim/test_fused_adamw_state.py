"""FusedAdamW's state: saving, loading, casts by others, other formats, torch's AdamW, its size."""

import copy
import io

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from clipfast import FusedAdamW
from clipfast.optim import state_bytes_per_parameter
from tests.optim.fused_adamw_cases import (
    STATS,
    WEIGHTS,
    assert_same_bits,
    contents,
    parameters,
    set_gradients,
    train,
    trained,
)


def _options(weights, grid, stats_dtype):
    return {"weights": weights, "weights_dtype": grid, "stats_dtype": stats_dtype}


def _through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _copies(optimizer):
    return [
        Parameter(param.detach().clone()) for g in optimizer.param_groups for param in g["params"]
    ]


@pytest.mark.parametrize("stats_dtype", STATS)
@pytest.mark.parametrize(("weights", "dtype", "grid"), WEIGHTS)
def test_resumed_run_repeats_the_bits(weights, dtype, grid, stats_dtype):
    options = _options(weights, grid, stats_dtype)
    whole = trained(3, dtype, **options)
    saved = _through_a_file(whole.state_dict())
    resumed = FusedAdamW(_copies(whole), **options)
    resumed.load_state_dict(saved)
    assert_same_bits(contents(resumed), contents(whole))
    train(whole, range(3, 6))
    train(resumed, range(3, 6))
    assert_same_bits(contents(resumed), contents(whole))
    assert whole.state[whole.param_groups[0]["params"][0]]["exp_avg"].dtype is stats_dtype


def test_loaded_options_are_the_checkpoints_but_formats_the_optimizers_own():
    saved = trained(1, stats_dtype=torch.bfloat16).state_dict()
    saved["param_groups"][0].update(lr=0.5, initial_lr=0.7, maximum=2.0)
    optimizer = FusedAdamW(parameters(), lr=0.1)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["maximum"]) == (0.5, 0.7, 2.0)
    assert group["stats_dtype"] is torch.float16


def test_loading_copies_and_runs_the_callers_hooks():
    whole = trained(2)
    twin = FusedAdamW(_copies(whole))
    seen = []

    def before(optimizer, state_dict):
        seen.append(state_dict["state"][0]["exp_avg"].dtype)

    def after(optimizer):
        seen.append(len(optimizer.state))

    twin.register_load_state_dict_pre_hook(before)
    twin.register_load_state_dict_post_hook(after)
    saved = whole.state_dict()
    twin.load_state_dict(saved)
    assert seen == [torch.float16, 4]
    kept = copy.deepcopy(contents(whole))
    train(twin, range(2, 4))
    assert_same_bits(contents(whole), kept)


def test_deepcopy_goes_on_alike():
    whole = trained(2, torch.bfloat16, weights="stochastic", seed=5, max_norm=0.3)
    set_gradients(whole.param_groups[0]["params"], 2)
    whole.param_groups[0]["params"][0].grad[0] = float("inf")
    whole.step()
    twin = copy.deepcopy(whole)
    assert twin.skipped_steps == 1
    train(whole, range(2, 4))
    train(twin, range(2, 4))
    assert_same_bits(contents(twin), contents(whole))


def test_states_follow_the_parameters_device_and_strides():
    whole = trained(2)
    meta = FusedAdamW([param.detach().to("meta").requires_grad_() for param in parameters()])
    meta.load_state_dict(whole.state_dict())
    for ours, theirs in zip(contents(meta), contents(whole), strict=True):
        assert (ours.device.type, ours.dtype) == ("meta", theirs.dtype)


@pytest.mark.parametrize("stats_dtype", STATS)
def test_states_move_between_layouts(stats_dtype):
    value = torch.randn(6, 70, 3, 3)
    first = Parameter(value.clone(memory_format=torch.channels_last))
    ours = FusedAdamW([first], stats_dtype=stats_dtype)
    train(ours, range(2))
    second = Parameter(value.clone())
    theirs = FusedAdamW([second], stats_dtype=stats_dtype)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state[second]["exp_avg"].is_contiguous()
    saved, loaded = (o.adamw_state_dict()["state"][0] for o in (ours, theirs))
    # In another order the blocks of fp16 are others and their codes are rounded anew.
    tolerance = 2**-10 if stats_dtype is torch.float16 else 0
    for key in ("exp_avg", "exp_avg_sq"):
        largest = saved[key].abs().max().item()
        torch.testing.assert_close(
            loaded[key], saved[key], rtol=tolerance, atol=tolerance * largest
        )


@pytest.mark.gpu
def test_states_move_to_cuda_and_back():
    whole = trained(2, torch.bfloat16, weights="remainder")
    device = FusedAdamW([Parameter(p.detach().cuda()) for p in _copies(whole)], weights="remainder")
    device.load_state_dict(whole.state_dict())
    back = FusedAdamW(_copies(whole), weights="remainder")
    back.load_state_dict(device.state_dict())
    assert_same_bits(contents(back), contents(whole))


@pytest.mark.parametrize("stats_dtype", STATS)
@pytest.mark.parametrize(("weights", "dtype", "grid"), WEIGHTS)
def test_states_cast_to_fp32_by_others_are_put_right(weights, dtype, grid, stats_dtype):
    whole = trained(3, dtype, **_options(weights, grid, stats_dtype))
    cast = copy.deepcopy(whole)
    for state in cast.state.values():
        for key, value in state.items():
            state[key] = value.float()
    weights_before = [weight.clone() for weight in whole.master_parameters()]
    assert_same_bits(cast.master_parameters(), weights_before)
    left, right = (o.adamw_state_dict()["state"] for o in (cast, whole))
    for index in right:
        assert_same_bits(left[index].values(), right[index].values())
    train(whole, range(3, 5))
    train(cast, range(3, 5))
    assert_same_bits(contents(cast), contents(whole))


def test_states_loaded_by_torch_are_put_right_where_nothing_was_lost():
    whole = trained(3)
    twin = FusedAdamW(_copies(whole))
    Optimizer.load_state_dict(twin, copy.deepcopy(whole.state_dict()))
    assert contents(twin)[1].dtype is torch.float32
    train(whole, range(3, 5))
    train(twin, range(3, 5))
    assert_same_bits(contents(twin), contents(whole))


@pytest.mark.parametrize(
    ("dtype", "options", "cast"),
    [
        (torch.bfloat16, {"stats_dtype": torch.float16}, {"exp_avg": torch.bfloat16}),
        (torch.float16, {"stats_dtype": torch.bfloat16}, {"exp_avg_sqrt": torch.float16}),
        (torch.bfloat16, {"stats_dtype": torch.float32}, {"exp_avg_sq": torch.bfloat16}),
        (torch.bfloat16, {"weights": "remainder"}, {"remainder": torch.bfloat16}),
        (torch.float16, {"weights": "fp32"}, {"master": torch.float16}),
    ],
)
def test_states_that_lost_bits_stop_the_run(dtype, options, cast):
    optimizer = trained(3, dtype, **options)
    for state in optimizer.state.values():
        for key, lossy in cast.items():
            state[key] = state[key].to(lossy)
    before = copy.deepcopy(contents(optimizer))
    with pytest.raises(ValueError, match="lost bits"):
        train(optimizer, [3])
    assert_same_bits(contents(optimizer), before)


def test_step_counts_beyond_their_type_stop_the_run():
    optimizer = trained(1)
    first = optimizer.param_groups[0]["params"][0]
    optimizer.state[first]["step"] = torch.tensor(300.0, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="'step'"):
        train(optimizer, [1])
    for count in (torch.tensor(7.0, dtype=torch.bfloat16), 7, torch.tensor([7])):
        optimizer.state[first]["step"] = count
        train(optimizer, [1])
        assert optimizer.state[first]["step"] == 8


def _moments(optimizer):
    return [
        torch.cat([s[key].flatten() for s in optimizer.adamw_state_dict()["state"].values()])
        for key in ("exp_avg", "exp_avg_sq")
    ]


@pytest.mark.parametrize("saved", STATS)
@pytest.mark.parametrize("wanted", STATS)
def test_statistics_change_their_format_on_loading(saved, wanted):
    whole = trained(5, stats_dtype=saved)
    other = FusedAdamW(_copies(whole), lr=0.01, stats_dtype=wanted)
    other.load_state_dict(whole.state_dict())
    train(other, [])
    # To nearest: 2^-9 relative for bf16, twice that for its square; 2^-11 of a block's largest
    # for fp16, whose square is off by that much of the largest too.
    tolerance = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 0.0}[wanted]
    if saved is wanted:
        tolerance = 0.0
    for ours, theirs in zip(_moments(other), _moments(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * theirs.max())
    key = "exp_avg_sq" if wanted is torch.float32 else "exp_avg_sqrt"
    kept = {"step", "exp_avg", key} | ({"exponents"} if wanted is torch.float16 else set())
    assert all(state.keys() == kept for state in other.state.values())
    train(other, [5])


@pytest.mark.parametrize(
    ("saved", "wanted", "kept"),
    [
        ("fp32", "remainder", "remainder"),
        ("remainder", "fp32", "master"),
        ("fp32", "stochastic", None),
        ("remainder", "stochastic", None),
        ("stochastic", "fp32", "master"),
        ("stochastic", "remainder", "remainder"),
    ],
)
def test_weights_change_their_format_on_loading(saved, wanted, kept):
    whole = trained(3, torch.bfloat16, weights=saved)
    exact = [weight.clone() for weight in whole.master_parameters()]
    # A tie, where the nearest bf16 of a master and the upper half of a remainder differ.
    if saved == "fp32":
        first = whole.param_groups[0]["params"][0]
        tie = torch.tensor(0x3F808000, dtype=torch.int32).view(torch.float32)
        whole.state[first]["master"][0] = exact[0][0] = tie
        first.data[0] = tie.bfloat16()
    other = FusedAdamW(_copies(whole), lr=0.0, weight_decay=0.0, weights=wanted)
    other.load_state_dict(whole.state_dict())
    other.param_groups[0].update(lr=0.0)
    assert_same_bits(other.master_parameters(), exact)
    # With a learning rate of 0 the step only converts.
    train(other, [3])
    keys = set().union(*other.state.values())
    assert keys & {"master", "remainder"} == ({kept} if kept else set())
    if kept:
        assert_same_bits(other.master_parameters(), exact)


@pytest.mark.parametrize("saved", ["fp32", "remainder"])
def test_fp32_parameter_takes_up_the_exact_weight(saved):
    whole = trained(3, torch.bfloat16, weights=saved)
    exact = [weight.clone() for weight in whole.master_parameters()]
    other = FusedAdamW([Parameter(param.detach().float()) for param in _copies(whole)])
    other.load_state_dict(whole.state_dict())
    other.param_groups[0].update(lr=0.0)
    train(other, [3])
    assert_same_bits([param.detach() for param in other.param_groups[0]["params"]], exact)
    assert not {"master", "remainder"} & set().union(*other.state.values())


def test_remainder_of_another_weight_is_refused():
    whole = trained(1, torch.bfloat16, weights="remainder")
    other = FusedAdamW(parameters())
    other.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="model's checkpoint"):
        train(other, [1])


@pytest.mark.parametrize(
    ("stats_dtype", "tolerance"), tuple(zip(STATS, (5e-3, 2e-2, 1e-6), strict=True))
)
def test_run_of_torch_adamw_is_continued(stats_dtype, tolerance):
    theirs = torch.optim.AdamW(parameters(), lr=0.01, weight_decay=0.1)
    train(theirs, range(10))
    ours = FusedAdamW(_copies(theirs), stats_dtype=stats_dtype)
    ours.load_state_dict(_through_a_file(theirs.state_dict()))
    assert "amsgrad" not in ours.param_groups[0]
    before = torch.cat([param.flatten() for param in _copies(theirs)])
    train(theirs, range(10, 20))
    train(ours, range(10, 20))
    exact, update = (torch.cat([p.flatten() for p in _copies(o)]) - before for o in (theirs, ours))
    assert (update - exact).norm() <= tolerance * exact.norm()


def test_half_precision_states_of_torch_adamw_are_taken():
    theirs = torch.optim.AdamW(parameters(torch.bfloat16), lr=0.01)
    train(theirs, range(3))
    ours = FusedAdamW(_copies(theirs), stats_dtype=torch.float32, weights="stochastic")
    ours.load_state_dict(theirs.state_dict())
    param, twin = ours.param_groups[0]["params"][1], theirs.param_groups[0]["params"][1]
    for key in ("exp_avg", "exp_avg_sq"):
        assert_same_bits([ours.state[param][key]], [theirs.state[twin][key].float()])
    train(ours, [3])


@pytest.mark.parametrize("stats_dtype", STATS)
def test_torch_adamw_continues_a_run_of_ours(stats_dtype):
    ours = trained(10, stats_dtype=stats_dtype, weight_decay=0.1)
    theirs = torch.optim.AdamW([Parameter(weight) for weight in ours.master_parameters()])
    theirs.load_state_dict(_through_a_file(ours.adamw_state_dict()))
    assert theirs.param_groups[0]["weight_decay"] == 0.1
    assert theirs.param_groups[0].keys() == torch.optim.AdamW(parameters()).param_groups[0].keys()
    before = torch.cat([param.flatten() for param in _copies(ours)])
    train(theirs, [10])
    train(ours, [10])
    exact, update = (torch.cat([p.flatten() for p in _copies(o)]) - before for o in (theirs, ours))
    # The same statistics go into this one update, so only its own rounding differs.
    assert (update - exact).norm() <= 1e-5 * exact.norm()


def test_exported_statistics_are_copies():
    ours = trained(2, stats_dtype=torch.float32)
    exported = ours.adamw_state_dict()["state"]
    before = copy.deepcopy(exported)
    train(ours, [2])
    for index in exported:
        assert_same_bits(exported[index].values(), before[index].values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.AdamW(p, maximize=True), "maximize"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), "decoupled"),
        (lambda p: torch.optim.SGD(p, momentum=0.9), "momentum_buffer"),
        (lambda p: torch.optim.AdamW([q[..., None].detach() for q in p]), "shape"),
        (lambda p: torch.optim.AdamW([*p, Parameter(torch.ones(1))]), "parameter group"),
        (lambda p: torch.optim.AdamW([{"params": p[:2]}, {"params": p[2:]}]), "parameter groups"),
    ],
)
def test_checkpoints_that_do_not_fit_leave_the_optimizer_alone(make, message):
    other = make(parameters())
    train(other, [0])
    ours = trained(2)
    before = copy.deepcopy(contents(ours))
    with pytest.raises(ValueError, match=message):
        ours.load_state_dict(other.state_dict())
    assert_same_bits(contents(ours), before)
    train(ours, [2])


@pytest.mark.parametrize("stats_dtype", STATS)
@pytest.mark.parametrize(("weights", "dtype", "grid"), WEIGHTS)
def test_state_bytes_per_parameter_are_what_is_kept(weights, dtype, grid, stats_dtype):
    params = [Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((512, 130), (512,), (77,))]
    optimizer = FusedAdamW(params, **_options(weights, grid, stats_dtype))
    train(optimizer, [0])
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    measured = kept / sum(param.numel() for param in params)
    expected = state_bytes_per_parameter(stats_dtype, weights, dtype)
    assert expected <= measured <= expected + 1e-3
    if stats_dtype is torch.float16 and dtype is torch.float32:
        assert measured <= 4.1


def test_state_bytes_of_what_does_not_exist_are_refused():
    with pytest.raises(ValueError, match="stats_dtype"):
        state_bytes_per_parameter(torch.int8, "fp32", torch.float32)
    with pytest.raises(ValueError, match="remainder"):
        state_bytes_per_parameter(torch.float16, "remainder", torch.float16)


@pytest.mark.parametrize("stats_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_load_refuses_statistics_of_another_length(stats_dtype):
    long, short = (torch.nn.Parameter(torch.ones(n)) for n in (12, 10))
    optimizers = [FusedAdamW([p], stats_dtype=stats_dtype) for p in (long, short)]
    for param, optimizer in zip((long, short), optimizers, strict=True):
        param.grad = torch.ones_like(param)
        optimizer.step()
    with pytest.raises(ValueError, match=r"shape \(12,\)"):
        optimizers[0].load_state_dict(optimizers[1].state_dict())

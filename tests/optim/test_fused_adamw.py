"""FusedAdamW's step: against torch's AdamW, and under all that calls an optimizer."""

import math

import pytest
import torch
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from clipfast import FusedAdamW
from clipfast.ops.adamw import split_master
from clipfast.optim import states
from clipfast.optim.tensor_list import in_layout
from tests.optim.fused_adamw_cases import (
    STATS,
    assert_same_bits,
    contents,
    parameters,
    set_gradients,
    train,
    trained,
)
from tests.ranks import run_ranks


class _BoundedAdamW(torch.optim.AdamW):
    """torch's AdamW, then the bound of each group."""

    def step(self):
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param.clamp_(max=group["maximum"])


def _grouped(params):
    return [
        {"params": params[:1], "weight_decay": 0.2, "maximum": float("inf")},
        {"params": params[1:2], "lr": 3e-3, "betas": (0.8, 0.98), "maximum": float("inf")},
        {"params": params[2:], "weight_decay": 0.0, "eps": 1e-6, "maximum": 0.5},
    ]


def test_fp32_statistics_equal_torch_adamw():
    runs = {}
    for name, kind, dtype in (
        ("truth", _BoundedAdamW, torch.float64),
        ("torch", _BoundedAdamW, torch.float32),
        ("ours", FusedAdamW, torch.float32),
    ):
        params = parameters()
        params = [Parameter(param.detach().to(dtype)) for param in params]
        options = {"stats_dtype": torch.float32} if kind is FusedAdamW else {}
        train(kind(_grouped(params), lr=0.01, **options), range(50))
        runs[name] = params
    for truth, theirs, ours in zip(*runs.values(), strict=True):
        worst = (theirs.double() - truth).abs().max()
        assert (ours.double() - truth).abs().max() <= 2 * worst + 1e-6
    assert max(param.max() for param in runs["ours"][2:]) == 0.5


@pytest.mark.parametrize(
    ("stats_dtype", "tolerance"), tuple(zip(STATS, (5e-3, 4e-2, 1e-6), strict=True))
)
def test_updates_are_near_those_of_fp32_statistics(stats_dtype, tolerance):
    exact, ours = parameters(), parameters()
    train(torch.optim.AdamW(exact, lr=0.01), range(50))
    train(FusedAdamW(ours, lr=0.01, stats_dtype=stats_dtype), range(50))
    start = torch.cat([param.flatten() for param in parameters()])
    exact, ours = (torch.cat([p.flatten() for p in params]) - start for params in (exact, ours))
    assert (ours - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("stats_dtype", STATS)
def test_remainder_and_master_equal_fp32_weights_bit_for_bit(stats_dtype):
    single = parameters(torch.bfloat16)
    single = [Parameter(param.detach().float()) for param in single]
    train(FusedAdamW(single, lr=1e-3, stats_dtype=stats_dtype), range(12))
    for weights in ("remainder", "fp32"):
        half = parameters(torch.bfloat16)
        optimizer = FusedAdamW(half, lr=1e-3, stats_dtype=stats_dtype, weights=weights)
        train(optimizer, range(12))
        assert_same_bits(optimizer.master_parameters(), [param.detach() for param in single])
        nearest = [split_master(param.detach())[0] for param in single]
        assert_same_bits([param.detach() for param in half], nearest)


def test_stochastic_weights_repeat_with_the_seed_alone():
    def run(**options):
        return contents(trained(5, torch.bfloat16, weights="stochastic", **options))

    assert_same_bits(run(), run())
    assert any(not torch.equal(a, b) for a, b in zip(run(), run(seed=1), strict=True))


def test_stochastic_weights_move_where_the_nearest_stall():
    moved = {}
    for rounding in ("stochastic", "nearest"):
        param = Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = FusedAdamW(
            [param], lr=1e-4, weight_decay=0, weights="stochastic", rounding=rounding
        )
        for _ in range(50):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved[rounding] = 1 - param.detach().double().mean().item()
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(50 * 1e-4, rel=0.1)


@pytest.mark.parametrize("grid", [torch.bfloat16, torch.float16])
def test_fp32_parameters_stay_on_the_grid_of_stochastic_weights(grid):
    params = parameters()
    optimizer = FusedAdamW(params, lr=0.01, weights="stochastic", weights_dtype=grid)
    train(optimizer, range(3))
    for param in params:
        assert param.dtype is torch.float32
        assert torch.equal(param.detach().to(grid).float(), param.detach())


def test_elements_keep_their_numbers_whatever_has_a_gradient():
    full, partial = parameters(), parameters()
    ours, theirs = FusedAdamW(full), FusedAdamW(partial)
    set_gradients(full, 0)
    set_gradients(partial, 0)
    partial[0].grad = None
    ours.step()
    theirs.step()
    assert_same_bits(contents(ours)[5:], contents(theirs)[1:])
    assert partial[0] not in theirs.state


def test_parts_numbered_by_first_element_equal_the_whole():
    whole = parameters(torch.bfloat16, [(1000,)])
    train(FusedAdamW(whole, weights="stochastic"), range(3))
    start = parameters(torch.bfloat16, [(1000,)])[0].detach()
    parts = [Parameter(start[:512].clone()), Parameter(start[512:].clone())]
    optimizers = [
        FusedAdamW([part], weights="stochastic", first_element=first)
        for part, first in zip(parts, (0, 512), strict=True)
    ]
    for step in range(3):
        set_gradients(whole, step)
        for part, grad in zip(parts, whole[0].grad.split(512), strict=True):
            part.grad = grad
        for optimizer in optimizers:
            optimizer.step()
    assert_same_bits([torch.cat([part.detach() for part in parts])], [whole[0].detach()])


def test_parameters_are_numbered_one_after_the_other():
    both = parameters(torch.bfloat16, [(1000,), (300,)])
    alone = [Parameter(both[1].detach().clone())]
    ours = FusedAdamW(both, weights="stochastic")
    # 1000 elements fill four blocks.
    other = FusedAdamW(alone, weights="stochastic", first_element=1024)
    for step in range(3):
        set_gradients(both, step)
        alone[0].grad = both[1].grad.clone()
        ours.step()
        other.step()
    assert_same_bits([alone[0].detach()], [both[1].detach()])


def test_max_norm_equals_clip_grad_norm():
    ours, theirs, free = parameters(), parameters(), parameters()
    fused = FusedAdamW(_grouped(ours), lr=0.01, stats_dtype=torch.float32, max_norm=0.1)
    clipped = FusedAdamW(_grouped(theirs), lr=0.01, stats_dtype=torch.float32)
    train(FusedAdamW(_grouped(free), lr=0.01, stats_dtype=torch.float32), range(10))
    for step in range(10):
        # Every other step stays under the bound.
        for params in (ours, theirs):
            set_gradients(params, step, scale=1.0 if step % 2 else 1e-4)
        torch.nn.utils.clip_grad_norm_(theirs, 0.1)
        fused.step()
        clipped.step()
    for a, b, c in zip(ours, theirs, free, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("unscales_itself", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_grad_scaler_unscales_and_skips(unscales_itself, max_norm):
    scaled, plain = parameters(), parameters()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    ours = FusedAdamW(scaled, lr=0.01, max_norm=max_norm)
    other = FusedAdamW(plain, lr=0.01, max_norm=max_norm)
    for step in range(4):
        set_gradients(plain, step)
        loss = sum((p * q.grad).sum() for p, q in zip(scaled, plain, strict=True))
        ours.zero_grad()
        scaler.scale(loss).backward()
        if step == 2:
            scaled[1].grad[0, 0] = float("inf")
        if unscales_itself:
            scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
        if step != 2:
            other.step()
    assert ours.skipped_steps == 1
    assert scaler.get_scale() == 512.0
    assert ours.state[scaled[0]]["step"] == 3
    # The norm is one of scaled gradients, so the factor that clips them may round differently.
    tolerance = {"rtol": 0, "atol": 0} if max_norm is None else {"rtol": 1e-5, "atol": 1e-5}
    for a, b in zip(scaled, plain, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_grad_scaler_with_fp16_parameters():
    param = Parameter(torch.ones(300, dtype=torch.float16))
    optimizer = FusedAdamW([param], lr=0.01, weight_decay=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale((param.float() * 2.0**-20).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(
        optimizer.full_precision(param), torch.full((300,), 0.99), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nonfinite_step_changes_nothing_and_is_counted(value):
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    groups = [{"params": ours[:2]}, {"params": ours[2:], "weights": "stochastic"}]
    spoilt = FusedAdamW(groups, weights="remainder")
    groups = [{"params": theirs[:2]}, {"params": theirs[2:], "weights": "stochastic"}]
    whole = FusedAdamW(groups, weights="remainder")
    for step in range(4):
        if step in (0, 2):
            set_gradients(ours, 100 + step)
            ours[3].grad[2] = value
            spoilt.step()
        set_gradients(ours, step)
        set_gradients(theirs, step)
        spoilt.step()
        whole.step()
    assert (spoilt.skipped_steps, whole.skipped_steps) == (2, 0)
    assert_same_bits(contents(spoilt), contents(whole))


def test_nonfinite_gradients_are_used_where_nobody_looks():
    params = parameters()
    optimizer = FusedAdamW(params, skip_nonfinite=False)
    set_gradients(params, 0)
    params[0].grad[1] = float("nan")
    optimizer.step()
    assert params[0].isnan().sum() == 1
    assert optimizer.skipped_steps == 0
    assert all(optimizer.state[param]["step"] == 1 for param in params)


def test_closure_is_evaluated_with_gradients():
    param = Parameter(torch.tensor([3.0]))
    optimizer = FusedAdamW([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert param.item() < 3.0


def test_parameters_without_gradient_wait_and_new_groups_join():
    ours, theirs = parameters(), parameters()
    fused = FusedAdamW(ours[:2], lr=0.01, stats_dtype=torch.float32)
    plain = torch.optim.AdamW(theirs[:2], lr=0.01)
    for step in range(6):
        if step == 3:
            fused.add_param_group({"params": ours[2:], "weight_decay": 0.0})
            plain.add_param_group({"params": theirs[2:], "weight_decay": 0.0})
        for params in (ours, theirs):
            set_gradients(params, step)
            if step % 2:
                params[0].grad = None
        fused.step()
        plain.step()
    assert [int(fused.state[param]["step"]) for param in ours] == [3, 6, 3, 3]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_step_without_any_gradient_and_without_elements():
    empty = Parameter(torch.zeros(0, 3))
    optimizer = FusedAdamW([empty, Parameter(torch.ones(2))])
    optimizer.step()
    assert not optimizer.state
    empty.grad = torch.zeros(0, 3)
    optimizer.step()
    assert optimizer.state[empty]["exponents"].shape == (2, 0)


def test_gradients_of_another_order_or_type():
    base = torch.randn(6, 5, 4, 4)
    last = base.clone(memory_format=torch.channels_last)
    cases = {
        "same": (base.clone(), base * 0.5),
        "channels last": (last, (base * 0.5).clone(memory_format=torch.channels_last)),
        "parameter alone": (last.clone(), base * 0.5),
        "gradient alone": (base.clone(), (base * 0.5).clone(memory_format=torch.channels_last)),
        "broadcast": (base.clone(), (base[:, :1] * 0.5).expand_as(base)),
    }
    results = {}
    for name, (value, grad) in cases.items():
        param = Parameter(value)
        optimizer = FusedAdamW([param], lr=0.01, stats_dtype=torch.float32)
        for _ in range(2):
            param.grad = grad
            optimizer.step()
        assert optimizer.state[param]["exp_avg"].stride() == param.stride()
        results[name] = param.detach()
    for name in ("channels last", "parameter alone", "gradient alone"):
        torch.testing.assert_close(results[name], results["same"], rtol=0, atol=0)
    assert not torch.equal(results["broadcast"], results["same"])
    mixed = Parameter(base.bfloat16())
    mixed.grad_dtype = torch.float32
    mixed.grad = base * 0.5
    optimizer = FusedAdamW([mixed], lr=0.01, stats_dtype=torch.float32, weight_decay=0)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[mixed]["exp_avg"], base * 0.05)


def test_parameters_may_change_their_order_between_steps():
    base = torch.randn(6, 5, 4, 4)
    turned, fixed = Parameter(base.clone()), Parameter(base.clone())
    ours, theirs = (FusedAdamW([p], stats_dtype=torch.float32) for p in (turned, fixed))
    for _ in range(2):
        turned.grad, fixed.grad = base * 0.5, base * 0.5
        ours.step()
        theirs.step()
        turned.data = turned.data.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(turned, fixed, rtol=0, atol=0)


def test_strides_of_dimensions_of_size_one_cost_no_copy():
    param = Parameter(torch.randn(8, 4, 1, 1).to(memory_format=torch.channels_last))
    grad = torch.randn(32).as_strided((8, 4, 1, 1), (4, 1, 1, 1))
    assert param.stride() != grad.stride()
    viewed = in_layout(param, grad)
    assert (viewed.data_ptr(), viewed.stride()) == (grad.data_ptr(), param.stride())
    assert torch.equal(viewed, grad)


def _clamp(param):
    param.clamp_(-0.25, 0.25)


def _swap_in_an_average(param):
    param.data.copy_(torch.linspace(-1, 1, param.numel()).reshape(param.shape))


def _set_some(param):
    param[::3] = 0.125


def _zero(param):
    param.zero_()


def _negative_zero_through_data(param):
    param.data.fill_(-0.0)


@pytest.mark.parametrize(
    "edit", [_clamp, _swap_in_an_average, _set_some, _zero, _negative_zero_through_data]
)
@pytest.mark.parametrize("weights", ["fp32", "remainder", "stochastic"])
def test_a_parameter_set_by_hand_is_the_weight_from_then_on(weights, edit):
    params = [Parameter(torch.randn(40, 13).bfloat16()), Parameter(torch.randn(300).bfloat16())]
    optimizer = FusedAdamW(params, lr=0.05, weights=weights)
    train(optimizer, range(5))
    with torch.no_grad():
        for param in params:
            edit(param)
    values = [param.detach().clone() for param in params]
    half_a_unit = 2.0**-8 if weights == "remainder" else 0.0
    for param, value in zip(params, values, strict=True):
        changed = optimizer.full_precision(param) - value.float()
        is_set = edit is not _set_some or (torch.arange(len(param)) % 3 == 0)
        is_set = torch.as_tensor(is_set).reshape(-1, *[1] * (param.dim() - 1))
        if edit is _clamp:
            is_set = value.abs() == 0.25
        assert changed.isfinite().all()
        # Of zero the unit is the smallest number.
        bound = half_a_unit * value.float().abs().clamp(min=2.0**-126)
        assert ((changed.abs() <= bound) | ~is_set).all()
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, range(5, 6))
    assert_same_bits([param.detach() for param in params], values)


def test_a_clamp_after_every_step_holds_as_with_torch():
    # OpenCLIP's of its logit scale, in a model that is bf16 as a whole.
    bound = math.log(100)
    scale = Parameter(torch.tensor([4.6], dtype=torch.bfloat16))
    optimizer = FusedAdamW([scale], lr=1e-2, weight_decay=0)
    for _ in range(60):
        scale.grad = torch.full_like(scale, -1.0)
        optimizer.step()
        # One step of the optimizer from the bound, and a rounding of bf16.
        assert scale.item() <= bound + 0.01 + 2.0**-6
        with torch.no_grad():
            scale.clamp_(0, bound)
    for _ in range(4):
        scale.grad = torch.full_like(scale, 20.0)
        optimizer.step()
    assert scale.item() < bound - 0.02


def test_masters_that_no_one_touched_keep_every_bit():
    params = parameters(torch.bfloat16)
    runs = []
    for clamps in (False, True):
        copies = [Parameter(param.detach().clone()) for param in params]
        optimizer = FusedAdamW(copies, lr=1e-3, weights="fp32")
        for step in range(8):
            train(optimizer, range(step, step + 1))
            if clamps:  # of which nothing comes, but a new version
                for param in copies:
                    param.detach().clamp_(-1e3, 1e3)
        runs.append(list(optimizer.master_parameters()))
    assert_same_bits(*runs)


def test_parameters_put_in_place_after_construction_one_group_a_step():
    """As under DeepSpeed: flat partitions instead, and under ZeRO-3 one sub-group a call."""
    whole, flat = parameters(), parameters()
    ours = FusedAdamW([{"params": [param]} for param in parameters(torch.bfloat16)])
    other = FusedAdamW([{"params": [param]} for param in whole])
    for step in range(3):
        set_gradients(whole, step)
        set_gradients(flat, step)
        other.step()
        for index, param in enumerate(flat):
            for position, group in enumerate(ours.param_groups):
                group["params"] = [param] if position == index else []
            ours.step()
    assert len(ours.state) == len(flat)
    for param, twin in zip(flat, whole, strict=True):
        assert_same_bits([param.detach()], [twin.detach()])
        assert ours.state[param]["step"] == 3


def test_parameters_on_several_devices():
    here, meta = Parameter(torch.ones(300)), Parameter(torch.ones(300, device="meta"))
    alone = Parameter(torch.ones(300))
    optimizer = FusedAdamW([here, meta], skip_nonfinite=False)
    for param in (here, meta, alone):
        param.grad = torch.ones_like(param)
    optimizer.step()
    FusedAdamW([alone]).step()
    assert_same_bits([here.detach()], [alone.detach()])
    assert {value.device.type for value in optimizer.state[meta].values()} == {"meta"}


def _distributed(rank_count: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    optimizer = FusedAdamW(model.parameters(), lr=0.01, max_norm=0.2)
    inputs, targets = torch.randn(5, 8, 40), torch.randn(5, 8, 8)
    rank = 0
    if rank_count > 1:
        rank, model = torch.distributed.get_rank(), DistributedDataParallel(model)
    for x, y in zip(inputs, targets, strict=True):
        part = slice(rank * 8 // rank_count, (rank + 1) * 8 // rank_count)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x[part]), y[part]).backward()
        optimizer.step()
    return contents(optimizer)


def test_ddp_replicas_keep_identical_bits_and_equal_one_process():
    first, second = run_ranks(2, _distributed, 2)
    assert_same_bits(first, second)
    for ours, single in zip(first[::5], _distributed(1)[::5], strict=True):
        torch.testing.assert_close(ours, single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("param", "options", "error", "message"),
    [
        (torch.ones(3), {"weights": "stochastic"}, ValueError, "weights_dtype=torch.bfloat16"),
        (torch.ones(3).half(), {"weights": "remainder"}, ValueError, "4 bytes"),
        (torch.ones(3).double(), {}, TypeError, "float64"),
        (torch.ones(3, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.ones(1).expand(3), {}, ValueError, "one stretch of memory"),
        (torch.ones(6)[::2], {}, ValueError, r"strides \(2,\)"),
    ],
)
def test_parameters_that_do_not_suit_are_named_by_the_first_step(param, options, error, message):
    param = param.detach().requires_grad_()
    param.grad = torch.ones(3, dtype=param.dtype)
    optimizer = FusedAdamW([param], **options)
    with pytest.raises(error, match=message):
        optimizer.step()


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(10, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="sparse=True"):
        FusedAdamW(table.parameters()).step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-3}, "lr of at least 0"),
        ({"eps": -1.0}, "eps of at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay of at least 0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"stats_dtype": torch.float64}, "torch.float64"),
        ({"weights": "half"}, "'half'"),
        ({"weights_dtype": torch.float32}, "weights_dtype"),
        ({"max_norm": 0.0}, "max_norm above 0"),
        ({"rounding": "up"}, "'up'"),
        ({"seed": -1}, "seed from 0"),
        ({"first_element": 100}, "round up to 256"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FusedAdamW(parameters(), **options)
    if not options.keys() & {"max_norm", "rounding", "seed", "first_element"}:
        optimizer = FusedAdamW(parameters())
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": parameters(), **options})
        assert len(optimizer.param_groups) == 1


def test_maximum_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="nan"):
        FusedAdamW([{"params": parameters(), "maximum": float("nan")}])


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["fp32", "remainder", "stochastic"])
@pytest.mark.parametrize("stats_dtype", STATS)
def test_cuda_gives_the_bits_of_the_cpu_without_waiting(stats_dtype, weights):
    options = {"lr": 0.01, "stats_dtype": stats_dtype, "weights": weights}
    ours = [Parameter(param.detach().cuda()) for param in parameters(torch.bfloat16)]
    theirs = parameters(torch.bfloat16)
    device, host = FusedAdamW(ours, **options), FusedAdamW(theirs, **options)
    for step in range(4):
        set_gradients(theirs, step)
        if step == 2:
            theirs[0].grad[0] = float("nan")
        for param, twin in zip(ours, theirs, strict=True):
            param.grad = twin.grad.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            device.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        host.step()
    assert device.skipped_steps == host.skipped_steps == 1
    assert_same_bits([tensor.cpu() for tensor in contents(device)], contents(host))


def test_first_step_under_capture_is_refused_and_later_ones_are_not(monkeypatch):
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = FusedAdamW([param], lr=0.1)
    param.grad = torch.ones(4)
    monkeypatch.setattr(states, "is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="take a step before the capture"):
        optimizer.step()
    monkeypatch.setattr(states, "is_capturing", lambda device: False)
    optimizer.step()
    monkeypatch.setattr(states, "is_capturing", lambda device: True)
    optimizer.step()
    assert optimizer.state[param]["step"].item() == 2

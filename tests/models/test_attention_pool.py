"""AttentionPool2d against the form that OpenAI released, in every layout and type."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipfast.models import AttentionPool2d
from clipfast.models.attention_pool import attention_pool
from clipfast.models.positions import resize_grid
from tests.models.helpers import assert_near

LAYOUTS = [torch.channels_last, torch.contiguous_format]


def make_pool(side=3, channels=24, heads=4, width=10, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return AttentionPool2d(side, channels, heads, width).to(dtype)


def make_images(side=3, channels=24, batch=5, dtype=torch.float64, layout=torch.channels_last):
    x = torch.randn(batch, channels, side, side, dtype=torch.float64).relu()
    return x.to(dtype).contiguous(memory_format=layout).requires_grad_()


def all_queries(pool: AttentionPool2d, x: torch.Tensor) -> torch.Tensor:
    """OpenAI's form: every token asks, and row 0 is taken."""
    t = x.flatten(2).permute(2, 0, 1)
    t = torch.cat([t.mean(dim=0, keepdim=True), t], dim=0)
    t = t + pool.positional_embedding[:, None, :].to(t.dtype)
    out, _ = F.multi_head_attention_forward(
        t, t, t, pool.embed_dim, pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight, need_weights=False,
    )  # fmt: skip
    return out[0]


def step(pool, x, function=None):
    """Output and all gradients, by name."""
    tensors = {"x": x, **dict(pool.named_parameters())}
    out = pool(x) if function is None else function(pool, x)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads = torch.autograd.grad(out, list(tensors.values()), grad.to(out.dtype))
    return {"out": out.detach(), **dict(zip(tensors, grads, strict=True))}


def assert_steps_near(got, want, tolerance):
    assert not got.pop("k_proj.bias").any()
    assert want.pop("k_proj.bias").abs().max() < 1e-12
    for name in want:
        assert got[name].shape == want[name].shape
        assert_near(got[name], want[name], tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 24, 4, 10), (1, 6, 3, 5), (7, 40, 5, 40)])
def test_attention_pool_2d_equals_the_released_form(shape, layout):
    pool = make_pool(*shape)
    for batch in (1, 5):
        x = make_images(*shape[:2], batch=batch, layout=layout)
        assert_steps_near(step(pool, x), step(pool, x, all_queries), 1e-12)


def test_attention_pool_2d_reads_channels_last_in_place():
    pool, x = make_pool(), make_images()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pool(x)
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in kept)
    grad = step(pool, x)["x"]
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_attention_pool_2d_functional_takes_foreign_parameters():
    pool, x = make_pool(), make_images()
    linears = [nn.Linear(24, 24).double() for _ in range(3)] + [nn.Linear(24, 10).double()]
    for linear, own in zip(
        linears, (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj), strict=True
    ):
        linear.load_state_dict(own.state_dict())
    parameters = [p for linear in linears for p in (linear.weight, linear.bias)]
    out = attention_pool(x, pool.positional_embedding, *parameters, 4)
    assert torch.equal(out, pool(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_pool_2d_in_half_precision_errs_no_more_than_the_released_form(dtype):
    own, released = {}, {}
    for seed in range(3):
        pool = make_pool(7, 256, 8, 100, dtype, seed)
        x = make_images(7, 256, 4, dtype)
        exact = copy.deepcopy(pool).double()
        wide = x.detach().double().requires_grad_()
        truth = step(exact, wide, all_queries)
        for total, got in ((own, step(pool, x)), (released, step(pool, x, all_queries))):
            for name in truth.keys() - {"k_proj.bias"}:
                error = (got[name].double() - truth[name]).norm() / truth[name].norm()
                total[name] = total.get(name, 0.0) + error.item()
    for name in own:
        assert own[name] <= 1.02 * released[name], (name, own[name], released[name])


def test_attention_pool_2d_under_autocast_gives_its_type_and_fp32_gradients():
    pool, x = make_pool(dtype=torch.float32), make_images(dtype=torch.float32)
    plain = step(pool, x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = step(pool, x)
        assert pool.double()(x.double()).dtype == torch.float64
    assert cast["out"].dtype == torch.bfloat16
    for name in plain.keys() - {"out", "k_proj.bias"}:
        assert cast[name].dtype == torch.float32
        assert_near(cast[name], plain[name], 0.05)


def test_attention_pool_2d_compiles_without_a_graph_break():
    pool, x = make_pool(dtype=torch.float32), make_images(dtype=torch.float32)
    want = step(pool, x)
    compiled = torch.compile(pool, fullgraph=True)
    got = step(pool, x, lambda _, images: compiled(images))
    for name in want:
        torch.testing.assert_close(got[name], want[name])


@pytest.mark.parametrize("given", [2, 5])
def test_attention_pool_2d_loads_positions_of_another_grid(given):
    pool, other = make_pool(3), make_pool(given, seed=1)
    state = other.state_dict()
    pool.load_state_dict(state)
    expected = resize_grid(other.positional_embedding, (10, 24))
    assert torch.equal(pool.positional_embedding, expected)
    assert torch.equal(pool.positional_embedding[0], other.positional_embedding[0])
    assert torch.equal(pool.k_proj.weight, other.k_proj.weight)
    assert state["positional_embedding"].shape == (given**2 + 1, 24)

    parent = nn.Sequential(make_pool(3, seed=2))
    parent.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    assert torch.equal(parent[0].positional_embedding, expected)


def test_attention_pool_2d_refuses_positions_that_are_no_grid():
    pool = make_pool(3)
    for shape in ((8, 24), (5, 23)):
        state = {**pool.state_dict(), "positional_embedding": torch.zeros(shape)}
        with pytest.raises(RuntimeError, match="size mismatch for positional_embedding"):
            pool.load_state_dict(state)


def test_attention_pool_2d_refuses_another_shape_with_the_remedy():
    with pytest.raises(ValueError, match=r"\[B, 24, 3, 3\], got \[1, 24, 3, 2\]"):
        make_pool()(torch.zeros(1, 24, 3, 2))
    with pytest.raises(ValueError, match="num_heads=5 must divide embed_dim=24"):
        AttentionPool2d(3, 24, 5)
    with pytest.raises(TypeError, match=r"of x's type torch\.float32, got torch\.float64"):
        make_pool()(torch.zeros(1, 24, 3, 3))

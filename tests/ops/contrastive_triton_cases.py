"""Checks of the contrastive loss in Triton against fp64, for tests/ops/test_contrastive_triton.py.

The cases of every implementation (contrastive_cases.py), and those of Triton's walk alone. As a
program, under TRITON_INTERPRET=1, this file runs them all on the CPU with small tiles. On a GPU
they run with the tiles that serve there, some at larger sizes.
"""

from __future__ import annotations

import contextlib
import functools

import torch

from clipfast.ops.contrastive import operators, plain
from tests.ops import contrastive_cases as shared
from tests.ops.contrastive_cases import BF16, F16, F32, HUGE, PLENTY, SMALL, Target, check_strip
from tests.ops.triton_tools import run_cases


def make_target(device: str) -> Target:
    """Triton on a GPU, or interpreted on the CPU, where a tile takes milliseconds."""
    shapes = [*SMALL, *([(129, 257, 100, 128), *HUGE] if device == "cuda" else [(40, 70, 100, 25)])]
    return Target("triton", device, operators("triton"), (F16, BF16, F32), shapes)


def make_strip(rows, columns, width, dtype, device, **options):
    return shared.make_strip(rows, columns, width, dtype, **options).to(device)


@contextlib.contextmanager
def least_wave(rows):
    from clipfast.kernels.contrastive import walk

    before, walk.LEAST_WAVE_ROWS = walk.LEAST_WAVE_ROWS, rows
    try:
        yield
    finally:
        walk.LEAST_WAVE_ROWS = before


def case_tf32(device):
    """Only that it runs and is near: 10 bits of mantissa on a GPU, exact when interpreted."""
    strip = make_strip(20, 40, 64, F32, device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        got = operators("triton").statistics(*strip, 3, False, PLENTY)
    finally:
        torch.set_float32_matmul_precision(before)
    true = plain.statistics(*strip.double(), 3, True, PLENTY)
    torch.testing.assert_close(
        shared.log_sums(*got[:2]), shared.log_sums(*true[:2]), rtol=0, atol=0.02
    )


def case_waves(device):
    rows, columns, tile = (1000, 1500, 256) if device == "cuda" else (40, 50, 16)
    with least_wave(tile):
        for scale, normalize, spread in ((14.3, True, 1.0), (1.0, False, 5.0)):
            options = {"scale": scale, "normalize": normalize, "spread": spread}
            strip = shared.make_strip(rows, columns, 64, F16, **options)
            check_strip(make_target(device), strip, 3, workspace=1, is_fixed=normalize)


def case_waves_are_whole_tiles_of_about_equal_length(device):
    from clipfast.kernels.contrastive.waves import waves

    assert list(waves(1000, 300, 16)) == [(0, 256), (256, 512), (512, 768), (768, 1000)]
    assert list(waves(5, 0, 16)) == [(0, 5)]


def case_second_rule_takes_the_same_walk(device):
    """A rule that kernels/ does not know, against fp64: sums, and products with its weights."""
    from clipfast.kernels.contrastive import walk
    from tests.ops.sigmoid_rule_triton import SIGMOID

    bias = torch.tensor([-1.5], device=device)
    sizes = [(1, 1, 7, 0, PLENTY), (17, 33, 100, 16, PLENTY), (40, 50, 64, 3, 1)]
    if device == "cuda":
        sizes += [(507, 1000, 252, 3, PLENTY), (1000, 3000, 512, 1000, 1)]
    for rows, columns, dim, first_column, workspace in sizes:
        for dtype in (torch.float16, torch.float32):
            for keep in (False, True):
                tensors = make_strip(rows, columns, dim, dtype, device)
                strip = walk.Strip(*tensors, first_column)
                with least_wave(256 if device == "cuda" else 16):
                    check_second_rule(walk, strip, SIGMOID, bias, keep, workspace)


def check_second_rule(walk, strip, rule, bias, keep, workspace):
    x, y, f, g, scale, bound = (t.double() for t in strip[:6])
    row = torch.arange(strip.rows, device=x.device)
    logits = scale * (x @ y.T) * f[:, None] * g
    terms = torch.nn.functional.softplus(logits + bias.double())
    sigmoid = torch.sigmoid(logits + bias.double())
    row_value = torch.rand(strip.rows, device=x.device) + 0.5
    weights = row_value.double()[:, None] * sigmoid * f[:, None] * g
    for matrix in (terms, sigmoid, weights):
        matrix[row, row + strip.first_column] = 0.0

    sums, kept = walk.sum_terms(strip, rule, keep, workspace, bias)
    assert not sums.row_base.any()
    assert not sums.column_base.any()
    torch.testing.assert_close(sums.row_sum.double(), terms.sum(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.column_sum.double(), sigmoid.sum(0), rtol=1e-5, atol=1e-6)

    values = (torch.zeros_like(bias), row_value, torch.empty_like(strip.column_factor), kept)
    got = walk.weighted_products(strip, rule, *values, True, True, workspace, bias)
    exact = (weights @ y, weights.T @ x)
    terms_of = (weights @ y.abs(), weights.T @ x.abs())
    rate = 1.01 * shared.ROUNDING[strip.x.dtype] + 1e-5
    if keep and strip.x.dtype == torch.float16:
        rate += float(bound) / 65000
    for product, truth, size in zip(got, exact, terms_of, strict=True):
        assert product.dtype == torch.float32
        assert ((product.double() - truth).abs() <= rate * size + 1e-7).all()


OWN = [name.removeprefix("case_") for name in dict(globals()) if name.startswith("case_")]
CASES = [*OWN, *(name for name in shared.CASES if name != "fp64")]


def run_case(name: str, device: str) -> None:
    """Runs one of CASES."""
    if name in OWN:
        globals()[f"case_{name}"](device)
    else:
        shared.CASES[name](make_target(device))


def run_interpreted() -> None:
    """Runs the cases with small tiles for every architecture."""
    from clipfast.kernels.contrastive import configs

    for arch, kernel, width in configs.TABLE:
        tile = configs.Config(16, 32, 64, 2, 4, 1)
        configs.TABLE[arch, kernel, width] = tile
    run_cases({name: functools.partial(run_case, name) for name in CASES})


if __name__ == "__main__":
    run_interpreted()

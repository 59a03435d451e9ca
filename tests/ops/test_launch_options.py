"""What every Triton launch says of itself, whatever the version of Triton takes for granted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import triton

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def launches(monkeypatch):
    """Options of each launch, by the kernel's name; nothing runs."""
    made = {}

    def run(self, *args, grid, warmup, **options):
        made[self.fn.__name__] = options

    monkeypatch.setattr(triton.JITFunction, "run", run)
    return made


def launch_loss():
    from clipfast.kernels.contrastive import launch

    x, row = torch.zeros(4, 16), torch.zeros(4)
    one = torch.zeros(1)
    launch.launch_prepare(x, True, torch.float32)
    launch.launch_diagonal(x, x, row, row)
    strip = (x, x, row, row, one, one)
    *_, kept = launch.launch_statistics(*strip, 0, True, 1 << 20)
    for logits in (kept, kept.new_empty(0)):
        launch.launch_gradients(*strip, one, row, row, logits, 0, True, True, 1 << 20)
    launch.launch_finish(x, x, x, row, row, row, row, one, True)


def launch_pool():
    from clipfast.kernels.attention_pool import launch

    x, positions = torch.zeros(2, 9, 32), torch.zeros(10, 32)
    token = launch.launch_mean_token(x, positions)
    vectors = torch.zeros(4, 2, 32)
    attention, _ = launch.launch_attend(x, positions, token, vectors, 1.0)
    launch.launch_attend_backward(x, positions, token, attention, vectors, 1.0)
    launch.launch_grad_tokens(attention, attention, vectors, vectors, token, True)


def launch_others():
    from clipfast.kernels.normalize.launch import launch_l2_normalize, launch_l2_normalize_backward
    from clipfast.kernels.quick_gelu.launch import launch_quick_gelu, launch_quick_gelu_backward

    x = torch.zeros(4, 16)
    launch_l2_normalize_backward(x, x, launch_l2_normalize(x, 0.0)[1])
    launch_quick_gelu_backward(x, launch_quick_gelu(x))


@pytest.mark.parametrize(
    ("launch", "kernels"), [(launch_loss, 10), (launch_pool, 4), (launch_others, 4)]
)
def test_every_launch_asks_for_fused_products_and_sums(launch, kernels, launches):
    launch()
    assert len(launches) == kernels, sorted(launches)
    plain = [name for name, options in launches.items() if not options.get("enable_fp_fusion")]
    assert not plain


def launches_in(source):
    """Calls of the form kernel[grid](...)."""
    nodes = ast.walk(ast.parse(source))
    return [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Subscript)]


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda p: p.name)
def test_launches_take_their_options_from_where_all_have_them(path):
    for launch in launches_in(path.read_text()):
        unpacked = [ast.unparse(word.value) for word in launch.keywords if word.arg is None]
        shared = [text for text in unpacked if text == "FUSED" or "options(" in text]
        assert shared, f"line {launch.lineno}: pass **FUSED, or a tile's options()"


def test_launches_are_found():
    found = launches_in("a[(1,)](x)\nb(x)\nkernel[grid](x, **FUSED)\n")
    assert [launch.lineno for launch in found] == [1, 3]

"""Every operator is declared once, in clipfast/ops/registry.py, and under one name everywhere."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import clipfast.loss  # noqa: F401  (declares an operator of its own)
from clipfast.ops import (  # noqa: F401  (declare theirs)
    adamw,
    attention_pool,
    batch_norm,
    contrastive,
    quick_gelu,
    registry,
    resize,
)
from clipfast.ops.registry import OPERATORS, PLAIN, TRITON, Compiled, Operator, Triton
from tests.needs import need

ROOT = Path(__file__).resolve().parents[2]
OURS = {
    operator.name_of(impl)
    for operator in OPERATORS.values()
    for impl in ("cpu", *((PLAIN, TRITON) if operator.chosen_by == "caller" else ()))
}
needs_extension = pytest.mark.needs("extension")


def triton_forms() -> list[tuple[str, Triton]]:
    pairs = [(name, form) for name, operator in OPERATORS.items() for form in operator.forms]
    return [(name, form) for name, form in pairs if isinstance(form, Triton)]


def room_of(operator: Operator) -> str | None:
    """The folder below clipfast/ops that holds its plain form; None for the loss's own."""
    found = re.match(r"clipfast\.ops\.(\w+)", operator.plain.__module__)
    return found and found[1]


def compiled_names(key: str) -> list[str]:
    """The operators that csrc registers under a dispatch key."""
    block = re.compile(r"TORCH_LIBRARY_IMPL\(clipfast, " + key + r", m\) \{(.*?)\n\}", re.DOTALL)
    bodies = [
        body for path in (ROOT / "csrc").rglob("*.cpp") for body in block.findall(path.read_text())
    ]
    return sorted(re.findall(r'm\.impl\("(\w+)"', "".join(bodies)))


def declared_names(device: str) -> list[str]:
    return sorted(name for name, op in OPERATORS.items() if Compiled(device) in op.forms)


def test_registry_declares_every_operator_of_clipfast():
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    assert {name for space, _, name in names if space == "clipfast"} == OURS


def test_registry_alone_calls_torch_library():
    callers = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "clipfast").rglob("*.py"))
        if re.search(r"torch\.library|from torch import .*\blibrary\b", path.read_text())
    ]
    assert callers == ["clipfast/ops/registry.py"]
    schemas = [p for p in (ROOT / "csrc").rglob("*.*") if "TORCH_LIBRARY(" in p.read_text()]
    assert not schemas


def test_registry_names_the_compiled_forms_that_csrc_registers():
    assert compiled_names("CPU") == declared_names("cpu")
    assert compiled_names("CUDA") == declared_names("cuda")


@needs_extension
def test_registry_compiled_forms_are_there():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name, operator in OPERATORS.items():
        assert has(f"clipfast::{name}", "CPU") == (Compiled("cpu") in operator.forms), name


def test_registry_plain_forms_serve_any_device_but_under_a_compiled_name():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name, operator in OPERATORS.items():
        key = "CompositeExplicitAutograd"
        assert has(f"clipfast::{operator.name_of(PLAIN)}", key)
        assert has(f"clipfast::{name}", key) == (operator.chosen_by != "caller"), name
        assert has(f"clipfast::{name}", "Meta"), name


@pytest.mark.parametrize(("name", "form"), triton_forms(), ids=lambda value: str(value)[:40])
def test_registry_triton_launchers_are_there(name, form):
    need("triton")
    room, _, function = form.launcher.partition(":")
    found = importlib.import_module(f"clipfast.kernels.{room}.launch")
    assert (not function) == (OPERATORS[name].chosen_by == "argument")
    assert not function or callable(getattr(found, function))
    assert room == room_of(OPERATORS[name])


def test_operators_have_one_folder_name_in_ops_kernels_and_csrc():
    def rooms(folder: str) -> set[str]:
        return {path.name for path in (ROOT / folder).iterdir() if path.is_dir()} - {"__pycache__"}

    ops = rooms("clipfast/ops")
    assert {"contrastive", "attention_pool", "adamw", "normalize"} <= ops
    assert rooms("kernels") - {"common"} <= ops
    assert rooms("csrc") - {"common", "building"} <= ops
    # One room puts torch's own operators together and declares none.
    declared = ops - {"average_pool"}
    assert {room for op in OPERATORS.values() if (room := room_of(op))} == declared


@pytest.mark.parametrize(
    ("device", "capability", "has_triton", "interprets", "version", "expected"),
    [
        ("cuda", (8, 0), True, False, (2, 6), True),
        ("cuda", (9, 0), True, False, (2, 10), True),
        ("cuda", (7, 5), True, False, (2, 6), False),
        ("cuda", (8, 0), False, False, (2, 6), False),
        ("cuda", (8, 0), True, False, (2, 5), False),
        ("cpu", (9, 0), True, False, (2, 6), False),
        ("cpu", (9, 0), True, True, (2, 6), True),
        ("cpu", (9, 0), False, True, (2, 6), False),
        ("meta", (9, 0), True, True, (2, 6), False),
    ],
)
def test_registry_one_rule_for_triton(
    monkeypatch, device, capability, has_triton, interprets, version, expected
):
    monkeypatch.setattr(registry, "_HAS_TRITON", has_triton)
    monkeypatch.setattr(registry, "_INTERPRETS", interprets)
    monkeypatch.setattr(registry, "_TORCH_VERSION", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert registry.runs_triton(device) is expected


def test_registry_available_impls_are_ordered_best_first(monkeypatch):
    for name in ("_HAS_TRITON", "_HAS_EXTENSION", "_HAS_CUDA", "_INTERPRETS"):
        monkeypatch.setattr(registry, name, True)
    monkeypatch.setattr(registry, "_TORCH_VERSION", (2, 8))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    def listed(operator: str) -> list[list[str]]:
        return [registry.available_impls(operator, device) for device in ("cuda", "cpu", "meta")]

    on_cpu = ["cpu", "plain", "triton"]
    assert listed("contrastive_statistics") == [["triton", "cuda", "plain"], on_cpu, ["plain"]]
    assert listed("l2_normalize") == [["cuda", "triton", "plain"], on_cpu, ["plain"]]
    assert listed("attention_pool") == [["triton", "plain"], ["plain", "triton"], ["plain"]]
    assert listed("adamw_") == [["cuda", "plain"], ["cpu", "plain"], ["plain"]]
    # Its Triton form needs products that torch has since 2.8.
    monkeypatch.setattr(registry, "_TORCH_VERSION", (2, 7))
    assert listed("contrastive_statistics")[0] == ["cuda", "plain"]


def test_registry_old_gpus_take_the_plain_form(monkeypatch):
    monkeypatch.setattr(registry, "_HAS_TRITON", True)
    monkeypatch.setattr(registry, "launcher", lambda where: lambda x: "triton")
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: ((7, 5), (8, 6))[device.index]
    )
    operator = Operator("toy", "(Tensor x) -> Tensor", lambda x: "plain", lambda x: x)
    call = registry._triton_or_plain(operator, Triton("toy:launch_toy"))
    first, second = (SimpleNamespace(device=torch.device("cuda", index)) for index in (0, 1))
    assert [call(first), call(second), call(first)] == ["plain", "triton", "plain"]


def test_registry_gpu_without_compiled_operators_gets_triton():
    need("triton")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("clipfast::quick_gelu", "CUDA")
    assert has("clipfast::quick_gelu_backward", "CUDA")
    assert has("clipfast::l2_normalize", "CUDA")
    # Its `impl` argument picks the steps: no form of its own.
    assert not has("clipfast::attention_pool", "CUDA")


def test_registry_old_name_of_the_plain_form_serves_and_says_so():
    x = torch.randn(3, 4)
    with pytest.warns(FutureWarning, match="impl='torch' is now called impl='plain'"):
        assert contrastive.choose("torch", x).impl == "plain"
    with pytest.warns(FutureWarning, match="now called impl='plain'"):
        assert attention_pool.choose("torch", x[None]) == "plain"
    assert registry.current_name("cuda") == "cuda"


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)


@needs_extension
def test_registry_refuses_a_schema_that_the_compiled_function_does_not_fit():
    done = run_script(
        "from clipfast.ops.registry import Compiled, Operator, declare\n"
        "schema = '(Tensor x, int n) -> Tensor'\n"
        "declare(Operator('quick_gelu', schema, print, print, forms=(Compiled('cpu'),)))\n"
    )
    assert done.returncode == 1
    assert "its quick_gelu does not fit the schema quick_gelu(Tensor x, int n)" in done.stderr
    assert "pip install -e . --no-build-isolation" in done.stderr


@needs_extension
def test_extension_alone_can_be_imported():
    done = run_script("import torch\nfrom clipfast import _C\nprint(_C.build_info()['torch'])")
    assert done.stdout.strip() == torch.__version__, done.stderr


def test_tensors_without_values_are_not_answered_with_memory_that_nobody_wrote():
    from clipfast.ops.quick_gelu.declaration import forward_operator  # noqa: F401

    x, grad = torch.randn(4, 8), torch.randn(4, 8, device="meta")
    with pytest.raises(RuntimeError, match=r"quick_gelu_backward: .* one device, got cpu, meta"):
        torch.ops.clipfast.quick_gelu_backward(grad, x)
    with pytest.raises(RuntimeError, match=r"linear: expected all tensors on one device"):
        torch.ops.clipfast.linear(x, torch.randn(3, 8, device="meta"), None)
    assert torch.ops.clipfast.quick_gelu_backward(grad, grad).device.type == "meta"

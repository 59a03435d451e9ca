"""The CUDA form of the AdamW operators: order of threads, capture, compiled without spills.

test_adamw_forms.py has its results, emulated on the CPU by tests/cuda_emulator and on a GPU if any.
"""

from __future__ import annotations

import re
import subprocess

import pytest
import torch

from clipfast.ops import adamw
from clipfast.ops.adamw import plain
from tests import cuda_emulator
from tests.cuda_emulator import nvcc, volta
from tests.ops.adamw_cases import (
    F16,
    F32,
    OPTIONS,
    SIZES,
    assert_same_bits,
    make_mixed_call,
    set_grads,
)

KERNELS = [cuda_emulator.CSRC / kernel for kernel in cuda_emulator.ADAMW_KERNELS]


def test_results_are_the_same_bits_in_any_order_of_threads(emulated_operators, monkeypatch):
    ops, _ = emulated_operators
    call = make_mixed_call("masters", F16, (2900, 257))
    set_grads(call, 0.5)
    for step in call.steps:
        step += 1
    runs = []
    for order in ("0", "1"):
        monkeypatch.setenv("CLIPFAST_EMULATOR_REVERSED", order)
        runs.append(call.to("cpu"))
        ops.adamw_(*runs[-1], **OPTIONS)
        norm = ops.adamw_grad_norm(call.grads)
    assert_same_bits(*runs)
    monkeypatch.setenv("CLIPFAST_EMULATOR_REVERSED", "0")
    assert norm == ops.adamw_grad_norm(call.grads)


@pytest.mark.gpu
def test_a_captured_step_goes_on_without_the_host(gpu_operators):
    call = make_mixed_call("masters", F16, SIZES)
    set_grads(call, 0.5)
    start, moved = call.to("cuda"), call.to("cuda")
    norm = torch.zeros((), device="cuda")

    def step():
        for t in moved.steps:
            t.add_(1)
        norm.copy_(gpu_operators.adamw_grad_norm(moved.grads))
        gpu_operators.adamw_(*moved, **OPTIONS)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for now, then in zip(moved[:7], start[:7], strict=True):
        for a, b in zip(now, then, strict=True):
            a.copy_(b)
    for _ in range(3):
        graph.replay()
        for t in call.steps:
            t += 1
        plain.step(*call, **OPTIONS)
    assert_same_bits(moved, call)
    torch.testing.assert_close(norm.cpu(), plain.grad_norm(call.grads))


@pytest.mark.gpu
@pytest.mark.parametrize("numerators", ["one", "random"])
def test_roots_and_quotients_of_all_mantissas(gpu_operators, numerators):
    # The kernel's own steps from the hardware's approximations, over two binades of v.
    count = 1 << 24
    call = make_mixed_call("bf16 grid", F32, (count,))
    call.params[0].zero_()
    call.grads[0].zero_()
    call.exp_avgs[0].fill_(2.0)
    if numerators == "random":
        call.exp_avgs[0].mul_(torch.rand(count) + 1)
    call.exp_avg_sqs[0].copy_(adamw.float_of(torch.arange(count) + (127 << 23)))
    call.steps[0].fill_(1.0)
    options = OPTIONS | {"beta1": 0.5, "beta2": 0.5, "eps": 0.0, "weight_decay": 0.0}
    got = call.to("cuda")
    gpu_operators.adamw_(*got, **options)
    gpu_operators.adamw_(*call, **options)
    assert_same_bits(got, call)


# All denominators of a binade, by reciprocals that are one unit off either way, and random
# numerators: how many quotients are not the nearest. Those of float are, of double's quotient.
QUOTIENTS = r"""
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#define __device__
#define __forceinline__ inline

float as_float(uint32_t bits) { float v; std::memcpy(&v, &bits, 4); return v; }
uint32_t as_bits(float v) { uint32_t bits; std::memcpy(&bits, &v, 4); return bits; }
int off = 0;
float approximate_reciprocal(float x) { return as_float(as_bits(1.0 / double(x)) + off); }
QUOTIENT
int main() {
  long wrong = 0;
  uint64_t random = 88172645463325252;
  for (off = -1; off <= 1; ++off)
    for (uint32_t i = 0; i < 1u << 23; ++i) {
      random = random * 6364136223846793005 + 1442695040888963407;
      const float denominator = as_float(0x3f800000 | i);
      const float numerator = as_float(0x3f800000 | random >> 41);
      const float nearest = double(numerator) / double(denominator);
      wrong += plain_quotient(numerator, denominator) != nearest;
    }
  std::printf("%ld\n", wrong);
}
"""


@pytest.mark.needs("g++")
def test_quotients_of_random_numerators_are_the_nearest(tmp_path):
    kernel = KERNELS[0].read_text()
    found = re.search(r"^__device__[^\n]* plain_quotient\(.*?^}\n", kernel, re.M | re.S)
    assert found
    (tmp_path / "quotients.cpp").write_text(QUOTIENTS.replace("QUOTIENT", found[0]))
    source, program = str(tmp_path / "quotients.cpp"), str(tmp_path / "quotients")
    # Products and sums fuse where the kernel says so alone.
    command = ["g++", "-O2", "-ffp-contract=off", source, "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


ENTRIES = {"adamw_kernel": 3, "adamw_norm_kernel": 2}


@pytest.mark.needs("nvcc")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    # bf16 has instructions of its own from 80 on.
    "archs",
    [(75, 90), pytest.param((70, 80), marks=pytest.mark.thorough)],
)
def test_cuda_adamw_compiles_without_spills(source, archs, tmp_path):
    words, count = nvcc.assemble(source, tmp_path, archs)
    assert words.count("Used ") == ENTRIES[source.stem] * count
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}


@pytest.mark.needs("cuda-12-compiler")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_cuda_adamw_compiles_for_v100_without_spills(source, tmp_path):
    words = volta.assemble(volta.compile_to_ptx(source, tmp_path), tmp_path)
    assert words.count("Compiling entry function") == ENTRIES[source.stem]
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}

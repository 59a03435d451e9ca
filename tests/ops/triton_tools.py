"""Triton without a GPU: cases under its interpreter, kernels through ptxas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.needs import need

ROOT = Path(__file__).resolve().parents[2]


def interpret(module: str, cases: Iterable[str] = ()) -> tuple[dict[str, str], str]:
    """Run a module of cases in a process whose Triton interprets.

    Args:
        module: its name; run as a program, it calls `run_cases`.
        cases: these alone; all where none is named.

    Returns:
        Each case's traceback, empty where it passed, and what the process wrote to stderr.
    """
    need("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *cases],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    return dict(json.loads(line) for line in done.stdout.splitlines()), done.stderr


def run_cases(cases: Mapping[str, Callable[[str], Any]]) -> None:
    """Print a line of JSON a case: its name, and the traceback of what failed in it. Where the
    command line names some, those alone run.

    Args:
        cases: by name; each takes the device.
    """
    import numpy as np
    import triton.language as tl
    from torch.utils import deterministic
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    # The interpreter multiplies bf16 operands as the 16-bit integers it stores them in.
    create_dot = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    InterpreterBuilder.create_dot = lambda self, a, b, *rest: create_dot(
        self, widened(a), widened(b), *rest
    )
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN
    deterministic.fill_uninitialized_memory = True
    chosen = sys.argv[1:] or cases
    for name, case in ((name, cases[name]) for name in chosen):
        torch.manual_seed(0)
        try:
            case("cpu")
            failure = ""
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps([name, failure]), flush=True)


class Assembled(NamedTuple):
    """What ptxas says of a kernel."""

    registers: int
    spilled_bytes: int


def assemble(made: Any, arch: int) -> Assembled:
    """Assemble what Triton has compiled.

    Args:
        made: of `triton.compile`.
        arch: the compute capability it was compiled for, as 80.

    Returns:
        Registers, and bytes spilled in stores and loads.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", made.asm["ptx"], re.MULTILINE)[1]
    assert target.startswith(f"sm_{arch}")
    done = subprocess.run(
        [get_ptxas(arch).path, f"-arch={target}", "-v", "-o", os.devnull, "/dev/stdin"],
        input=made.asm["ptx"],
        capture_output=True,
        text=True,
        check=True,
    )
    spilled = re.findall(r"(\d+) bytes spill", done.stderr)
    assert spilled, done.stderr
    return Assembled(
        int(re.search(r"Used (\d+) registers", done.stderr)[1]), sum(map(int, spilled))
    )

"""What torch must know of AdamW's operators:

    torch.ops.clipfast.adamw_            one step of a list of tensors, in place
    torch.ops.clipfast.adamw_grad_norm   2-norm of a list of gradients

Beside plain torch they have two forms of csrc/adamw: cpu (vectorised, threaded), and cuda (one
launch for many tensors). Every form of the step gives the same bits. Norms add in orders of their
own, in fp64, and may differ in the last bit of fp32.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from clipfast.ops.adamw import plain
from clipfast.ops.registry import Compiled, Operator, declare


def _step_anywhere(*args, **kwargs) -> None:
    (params, *_), control = args, args[8]
    if control.is_cuda and params:
        warnings.warn(
            "clipfast's AdamW runs in plain torch on this GPU, many times slower: the compiled "
            "CUDA operators are absent. Remedy: build them with nvcc on PATH, "
            "`pip install -e . --no-build-isolation`.",
            RuntimeWarning,
            stacklevel=2,
        )
    plain.step(*args, **kwargs)


def _fake_step(*args, **kwargs) -> None:
    return None


def _fake_grad_norm(grads: Sequence[Tensor]) -> Tensor:
    return grads[0].new_empty((), dtype=torch.float32)


step_operator = declare(
    Operator(
        name="adamw_",
        schema=(
            "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
            "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] exponents, Tensor(e!)[] masters, "
            "Tensor[] steps, int[] first_elements, Tensor control, *, float lr, float beta1, "
            "float beta2, float eps, float weight_decay, float maximum, int seed, "
            "bool stochastic, str grid, int[] starts=[]) -> ()"
        ),
        plain=_step_anywhere,
        fake=_fake_step,
        forms=(Compiled("cpu"), Compiled("cuda")),
    )
)
grad_norm_operator = declare(
    Operator(
        name="adamw_grad_norm",
        schema="(Tensor[] grads) -> Tensor",
        plain=plain.grad_norm,
        fake=_fake_grad_norm,
        forms=(Compiled("cpu"), Compiled("cuda")),
    )
)

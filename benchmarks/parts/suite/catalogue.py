"""The parts of the suite, in order of worth, with what each takes.

Costs are seconds from the start of Python to its end: on two cores of an AMD EPYC (float32 products
at 480 GFLOP/s), and on one H200 with 16 cores. A machine whose products are slower is given as much
more time, by the first part's own rows.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.parts.suite.part import TESTS, Part
from benchmarks.peers import CHECKOUT

# FLOP per second of the products on the machine of the costs, in the first of the types.
REFERENCE = {"cpu": ("fp32", 480e9), "cuda": ("bf16", 790e12)}
CEILINGS = "ceilings"
OPEN_CLIP = ("open_clip",)
CLIP_BENCHMARK = (*OPEN_CLIP, "clip_benchmark", "sklearn")
_INSTALLED = {CHECKOUT: ""}


def parts(device: str, checkout: Path | None = None) -> list[Part]:
    """The parts of a device.

    Args:
        device: ``cpu`` or ``cuda``.
        checkout: Of OpenCLIP's main, for the parts that compare with it too.
    """
    found = [*(_CUDA if device == "cuda" else _CPU)]
    if checkout is not None:
        found += _of_checkout(device, checkout)
    found = [part for part in found if part.kind == TESTS or _exists(part)]
    order = {part.name: worth for worth, part in enumerate(found)}
    if checkout is not None:
        # Beside the same step against the installed version.
        order |= {
            f"{name}-main": order[name] + 0.5
            for name in ("step-vit", "text")
            if f"{name}-main" in order
        }
    return sorted(found, key=lambda part: order[part.name])


def _exists(part: Part) -> bool:
    """Whether its benchmark is in this tree."""
    return importlib.util.find_spec(part.command[1]) is not None


def _rows(
    name: str,
    what: str,
    command: str,
    seconds: float,
    needs: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    any_of: tuple[str, ...] = (),
    evidence: tuple[str, ...] = (),
) -> Part:
    script, *options = command.split()
    return Part(
        name,
        what,
        ("-m", f"benchmarks.{script}", *options),
        seconds,
        needs=needs,
        environment={**_INSTALLED, **(environment or {})},
        any_of=any_of,
        evidence=evidence,
    )


def _tests(name: str, what: str, command: str, seconds: float, **environment: str) -> Part:
    return Part(
        name,
        what,
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", *_workers(), *command.split()),
        seconds,
        kind=TESTS,
        needs=("pytest",),
        environment=environment,
    )


def _workers() -> tuple[str, ...]:
    """Processes of pytest, where its plugin is there and cores to run them."""
    cores = os.cpu_count() or 1
    if cores < 8 or importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(min(10, cores - 2)), "--dist", "worksteal")


_CPU = (
    _rows(CEILINGS, "rates of products and of a copy", "ceilings --device cpu", 12),
    _tests(
        "tests",
        "a short choice of the operators' tests",
        "tests/ops/test_contrastive.py tests/ops/test_normalize.py tests/ops/test_quick_gelu.py "
        "tests/ops/test_adamw_formats.py",
        35,
    ),
    _rows(
        "loss",
        "the loss against OpenCLIP's and chunked torch",
        "loss_throughput --device cpu --batch-sizes 2048 --runs 5 --peers openclip chunked",
        35,
    ),
    _rows(
        "step-vit",
        "a step of ViT-B/32, fp32",
        "step_throughput --device cpu --models ViT-B/32 --batch-sizes 16 --precisions fp32 "
        "--contenders clipfast patched openclip --runs 3",
        75,
        OPEN_CLIP,
    ),
    _rows(
        "text",
        "the text tower, web captions, fp32",
        "text_tower --device cpu --captions web --precisions fp32 "
        "--contenders clipfast patched openclip --runs 3",
        45,
        OPEN_CLIP,
    ),
    _rows(
        "pool",
        "attention pooling of the RN50",
        "attention_pool --device cpu --pools RN50 --runs 3",
        20,
    ),
    _rows(
        "adamw",
        "an AdamW step on a flat slice",
        "adamw --device cpu --lists flat --elements 16777216 --runs 5 "
        "--contenders fp16 bf16 fp32 remainder stochastic torch-fused",
        25,
    ),
    _rows("tokenizer", "the tokenizer", "tokenizer --runs 10", 35, OPEN_CLIP),
    _rows(
        "data",
        "decoding and loading, pictures of 64 and 640 px",
        "data_throughput --device cpu --pictures sample --sizes 640 --runs 3 --seconds 1 "
        "--contenders clipfast dataloader webdataset",
        60,
        OPEN_CLIP,
    ),
    _rows(
        "step-rn50",
        "a step of RN50, fp32",
        "step_throughput --device cpu --models RN50 --batch-sizes 8 --precisions fp32 "
        "--contenders clipfast openclip --runs 3",
        60,
        OPEN_CLIP,
    ),
    _rows(
        "patch-gain",
        "OpenCLIP's own step, patched",
        "patch_gain --device cpu --models ViT-B/32 --batch-sizes 8 --runs 2",
        40,
        OPEN_CLIP,
    ),
    _rows(
        "zeroshot",
        "zero-shot classification against CLIP_benchmark",
        "zeroshot --device cpu --model ViT-tiny --images 512 --runs 3 --workers 2",
        45,
        CLIP_BENCHMARK,
    ),
    _rows(
        "probe",
        "linear probes against scikit-learn",
        "probe --device cpu --rows 2000 --dim 128 --classes 10 --runs 1",
        20,
        ("sklearn",),
    ),
    _rows(
        "near",
        "recall of near duplicates by a perceptual hash",
        "near_duplicates --device cpu --limit 300 --runs 3",
        25,
    ),
    _rows(
        "stores",
        "an epoch over HTTP at 20 ms, beside webdataset's pipe",
        "stores --device cpu --protocols http --latencies 20 --what read --runs 1 --count 2000",
        90,
        ("webdataset", "obstore"),
    ),
    _rows(
        "loss-ranks",
        "the loss over two ranks",
        "loss_throughput --device cpu --batch-sizes 2048 --dtypes float32 --ranks 2 --runs 3 "
        "--peers openclip",
        40,
    ),
    _rows(
        "loss-compiled",
        "the loss against OpenCLIP's, compiled",
        "loss_throughput --device cpu --batch-sizes 1024 --runs 5 --peers openclip "
        "openclip-compile",
        60,
    ),
)

_CUDA = (
    _rows(CEILINGS, "rates of products and of a copy", "ceilings --device cuda", 25),
    _tests(
        "tests",
        "the tests of operators, optimizer and models on the GPU",
        "tests/ops tests/optim tests/models -m gpu",
        150,
        CLIPFAST_REQUIRE="cuda,triton",
    ),
    _tests(
        "training",
        "short runs at every stage of ZeRO, in every precision",
        "tests/engine/test_gpu.py",
        150,
        CLIPFAST_REQUIRE="cuda",
    ),
    _rows(
        "loss",
        "the loss at 32,768 pairs, bf16",
        "loss_throughput --device cuda --batch-sizes 32768 --dims 1024 --dtypes bfloat16 "
        "--impl triton cuda --peers openclip chunked --runs 8",
        45,
    ),
    _rows(
        "step-vit",
        "a step of ViT-B/32, bf16",
        "step_throughput --device cuda --models ViT-B/32 --batch-sizes 512 "
        "--contenders clipfast patched openclip --runs 5",
        45,
        OPEN_CLIP,
    ),
    _rows(
        "pool",
        "attention pooling of the RN50x64 and the RN50",
        "attention_pool --device cuda --pools RN50x64 RN50 --dtypes bfloat16 --runs 10",
        40,
    ),
    _rows(
        "adamw",
        "an AdamW step",
        "adamw --device cuda --contenders fp16 bf16 fp32 remainder stochastic torch-fused "
        "torch-fused-bf16 --runs 10",
        40,
    ),
    _rows(
        "text",
        "the text tower, packed",
        "text_tower --device cuda --widths 512 --contenders clipfast patched openclip --runs 10",
        35,
        OPEN_CLIP,
    ),
    _rows(
        "step-rn50",
        "a step of RN50, bf16",
        "step_throughput --device cuda --models RN50 --batch-sizes 256 "
        "--contenders clipfast openclip --runs 5",
        60,
        OPEN_CLIP,
    ),
    _rows(
        "loss-rivals",
        "the loss against Inf-CL, memeff and siglip-kernel",
        "loss_throughput --device cuda --batch-sizes 32768 --dims 1024 --dtypes bfloat16 "
        "--impl triton --peers inf-cl memeff siglip-kernel --runs 3",
        45,
        any_of=("inf_cl", "memeff", "siglip_kernel"),
        evidence=("Inf-CL", "memeff", "siglip-kernel"),
    ),
    _rows(
        "loss-large",
        "the loss at 524,288 pairs",
        "loss_throughput --device cuda --batch-sizes 524288 --dims 512 --dtypes bfloat16 "
        "--impl triton --keep recompute --peers",
        70,
    ),
    _rows(
        "loss-small",
        "the loss at 4,096 pairs",
        "loss_throughput --device cuda --batch-sizes 4096 --dims 512 --dtypes bfloat16 "
        "--impl triton cuda --peers openclip openclip-compile",
        60,
    ),
    _rows(
        "data",
        "decoding and loading, pictures of 64 and 640 px",
        "data_throughput --device cuda --pictures sample --sizes 640 --runs 3 --seconds 1 "
        "--contenders clipfast dataloader webdataset",
        60,
        OPEN_CLIP,
    ),
    _rows("tokenizer", "the tokenizer", "tokenizer --runs 10", 25, OPEN_CLIP),
    _rows(
        "loss-fp16",
        "the loss at 32,768 pairs, fp16 and fp32",
        "loss_throughput --device cuda --batch-sizes 32768 --dims 1024 --dtypes float16 float32 "
        "--impl triton cuda --peers openclip --runs 5",
        60,
    ),
    _rows(
        "step-compiled",
        "a step of ViT-B/32, compiled",
        "step_throughput --device cuda --models ViT-B/32 --batch-sizes 512 "
        "--contenders clipfast clipfast-compile openclip openclip-compile --runs 5",
        120,
        OPEN_CLIP,
        evidence=("clipfast, compiled blocks", "torch.compile"),
    ),
    _rows(
        "pool-fp32",
        "attention pooling, fp32",
        "attention_pool --device cuda --pools RN50x64 RN50 --dtypes float32 --runs 5",
        40,
    ),
    _rows(
        "step-large",
        "steps of ViT-L/14 and RN50x64",
        "step_throughput --device cuda --models ViT-L/14 RN50x64 --contenders clipfast openclip "
        "--runs 3",
        120,
        OPEN_CLIP,
    ),
    _rows(
        "patch-gain",
        "OpenCLIP's own step, patched",
        "patch_gain --device cuda --models ViT-B/32 --batch-sizes 512 --runs 5",
        60,
        OPEN_CLIP,
    ),
)


def _of_checkout(device: str, checkout: Path) -> list[Part]:
    """The parts against OpenCLIP's main, each in a process that imports that one alone."""
    main = {CHECKOUT: str(checkout)}
    found = []
    for one in _CUDA if device == "cuda" else _CPU:
        if one.name in ("step-vit", "text"):
            found.append(
                Part(
                    f"{one.name}-main",
                    f"{one.what}, against the checkout of OpenCLIP",
                    one.command,
                    one.seconds,
                    needs=one.needs,
                    environment=main,
                )
            )
    size = "--batch-sizes 512 --runs 5" if device == "cuda" else "--batch-sizes 8 --runs 2"
    found.append(
        _rows(
            "patch-gain-main",
            "OpenCLIP's own step, patched: both versions, variable_text, length bucketing",
            f"patch_gain --device {device} --models ViT-B/32 {size} --checkout {checkout}",
            120 if device == "cuda" else 100,
            OPEN_CLIP,
        )
    )
    return found

"""Plain and patched OpenCLIP in turns: a step of ``patch_gain.py``, its check and its time."""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clipfast
from benchmarks.parts.common import harness, peers
from benchmarks.parts.common.captions import Captions, make_captions
from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.step.check import relative_error, tower_of
from benchmarks.parts.step.contenders import LARGEST_LOG_SCALE, make_optimizer, share_parameters
from benchmarks.parts.step.measure import forget
from benchmarks.peers import import_open_clip

BUCKETS = 4
# Rounding: of a ResNet's gradients, batch norms and ReLUs over few samples make much more.
LIMITS = {"loss": 1e-5, "image_grad": 1e-4, "text_grad": 1e-4, "scale_grad": 1e-3}
RESNET_LIMIT = 2e-2
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What the captions of a step are.

    Attributes:
        name: In the table.
        batches: Tokens [B, L] of each step of a timed run.
        captions: All of them, for what a row says.
        is_variable: OpenCLIP 4's ``variable_text``, for which it has another class of model.
    """

    name: str
    batches: list[Tensor]
    captions: Captions
    is_variable: bool = False


class Side:
    """A model with OpenCLIP's loss and optimizer.

    Args:
        model: Plain or patched; both have the same parameters, and one optimizer.
        optimizer: Of these parameters.
        images: ``[B, 3, S, S]``.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
        self.model, self.optimizer, self.images = model, optimizer, images
        self.loss = import_open_clip().loss.ClipLoss(cache_labels=True)

    def forward_backward(self, tokens: Tensor) -> Tensor:
        loss: Tensor = self.loss(**self.model(self.images, tokens))
        loss.backward()
        return loss.detach()

    def gradients(self, tokens: Tensor) -> tuple[Tensor, Gradients]:
        """The loss, and all gradients, which are dropped from the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward_backward(tokens)
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return loss, found

    def steps(self, batches: Sequence[Tensor]) -> None:
        """What is timed."""
        for tokens in batches:
            self.forward_backward(tokens)
            self.optimizer.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, LARGEST_LOG_SCALE)
            self.optimizer.zero_grad(set_to_none=True)


def measure_version(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Check and time every model in every setting of the OpenCLIP that is imported.

    Args:
        options: ``models``, ``batch_sizes``, ``runs``, ``device``.

    Yields:
        The two rows of a model in a setting.
    """
    peers.require_open_clip()
    for model, batch in zip(options.models, options.batch_sizes, strict=True):
        for setting in make_settings(batch, options.device):
            yield measure_setting(model, setting, options)
            forget()


def make_settings(batch: int, device: str) -> list[Setting]:
    """The settings that this version of OpenCLIP has."""
    captions = make_captions("web", batch, device=device)
    settings = [Setting("77 tokens", [captions.tokens], captions)]
    fields = import_open_clip().model.CLIPTextCfg.__dataclass_fields__
    if "variable_text" in fields:
        pool = make_captions("web", BUCKETS * batch, device=device)
        order = pool.lengths.argsort(stable=True).split(batch)
        buckets = [pool.tokens[rows][:, : int(pool.lengths[rows].max())] for rows in order]
        settings.append(Setting("variable_text", [captions.cut_tokens], captions, True))
        settings.append(Setting("length bucketing", buckets, pool, True))
    return settings


def measure_setting(name: str, setting: Setting, options: argparse.Namespace) -> list[Row]:
    """A row of the plain model and one of the patched one."""
    open_clip = import_open_clip()
    config = peers.open_clip_config(name)
    kind = open_clip.model.CLIP
    if setting.is_variable:
        kind, config["text_cfg"]["variable_text"] = open_clip.model.CustomTextCLIP, True
    torch.manual_seed(0)
    plain = kind(**config, output_dict=True)
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if parameter.ndim == 1 and not key.startswith("logit"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
            if key.endswith("bn3.weight"):
                parameter.add_(0.3)
    plain.to(options.device)
    patched = share_parameters(plain)
    # The class of OpenCLIP's loss is the process's: plain and patched model take turns with it.
    report = clipfast.patch_open_clip(patched, loss=False)
    size = config["vision_cfg"]["image_size"]
    images = torch.randn(len(setting.batches[0]), 3, size, size, device=options.device)
    optimizer = make_optimizer(plain)
    sides = {"plain": Side(plain, optimizer, images), "patched": Side(patched, optimizer, images)}
    sides["patched"].loss = clipfast.ClipLoss()
    errors = check(sides, setting, is_resnet=name.startswith("RN"))
    cpu_seconds: dict[str, list[float]] = {key: [] for key in sides}

    def timed(key: str) -> Callable[[], None]:
        def run() -> None:
            begin = time.process_time()
            sides[key].steps(setting.batches)
            cpu_seconds[key].append(time.process_time() - begin)

        return run

    rows = harness.measure_together(
        {key: timed(key) for key in sides},
        check=lambda: True,  # see above
        device=options.device,
        warmup=1,
        runs=options.runs,
        memory=False,
        ratios_to=["patched"],
        model=name,
        batch=len(images),
        # As OpenCLIP's training program has it on a GPU.
        precision="fp32" if torch.device(options.device).type == "cpu" else "tf32",
        setting=setting.name,
        steps=len(setting.batches),
        swapped=sorted(report.swapped),
        how="one process, plain and patched in turns; medians of times and of ratios per turn",
        open_clip_version=open_clip.__version__,
        open_clip_commit=_commit(),
        **setting.captions.fields,
    )
    return _complete(rows, cpu_seconds, errors)


def check(sides: dict[str, Side], setting: Setting, is_resnet: bool) -> dict[str, float]:
    """The largest relative errors of the patched model's loss and gradients.

    Raises:
        CheckFailed: one is too large, or a gradient is missing.
    """
    worst: dict[str, float] = {}
    for tokens in setting.batches:
        (truth, expected), (loss, actual) = (side.gradients(tokens) for side in sides.values())
        if expected.keys() != actual.keys():
            raise CheckFailed(f"gradients differ: {min(expected.keys() ^ actual.keys())}")
        errors = {"loss": ((loss - truth).abs() / truth.abs()).item()}
        for tower in ("image", "text", "scale"):
            errors[f"{tower}_grad"] = relative_error(
                [(actual[key], expected[key]) for key in expected if tower_of(key) == tower]
            )
        worst = {key: max(value, worst.get(key, 0.0)) for key, value in errors.items()}
    limits = LIMITS | ({"image_grad": RESNET_LIMIT} if is_resnet else {})
    failed = {key: value for key, value in worst.items() if not value <= limits[key]}
    if failed:
        raise CheckFailed(f"{setting.name}: patched OpenCLIP computes something else: {failed}")
    return {f"error_{key}": value for key, value in worst.items()}


def _complete(
    rows: list[Row], cpu_seconds: dict[str, list[float]], errors: dict[str, float]
) -> list[Row]:
    """Times of one step, names, and the processors' time."""
    runs = rows[0]["runs"]
    timed = {key: torch.tensor(values[-runs:]).double() for key, values in cpu_seconds.items()}
    for row in rows:
        key = row.pop("name")
        for name in ("median_ms", "p20_ms", "p80_ms"):
            row[name] /= row["steps"]
        row["cpu_ms"] = 1e3 * timed[key].median().item() / row["steps"]
        if key == "plain":
            row["cpu_ratio_to_patched"] = (timed["plain"] / timed["patched"]).median().item()
        suffix = ", patch_open_clip" if key == "patched" else ""
        row.update(name=f"OpenCLIP {row['open_clip_version']}{suffix}", contender=key, **errors)
    return rows


def _commit() -> str | None:
    """The commit of a checkout; None of an installed version, or where nothing says it."""
    folder = Path(import_open_clip().__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    if "site-packages" in folder.parts:
        return None
    try:
        done: Any = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return str(done.stdout).strip()

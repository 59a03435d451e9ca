"""Who takes the step in ``step_throughput.py``: clipfast in its forms, OpenCLIP in its own.

All start from one set of random weights and see the same pairs. Each side gets its input as its own
loader gives it: clipfast images in channels_last and tokens cut to the longest caption with their
lengths, OpenCLIP contiguous images and tokens padded to 77. Forms of one side share its parameters
and its optimizer, so that two sets are held however many forms there are.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipfast
from benchmarks.parts.common import peers
from benchmarks.parts.common.captions import Captions, make_captions
from benchmarks.peers import import_open_clip
from clipfast.models import CLIP, create_model

PRECISIONS = ("fp32", "tf32", "amp_bf16")
CONTENDERS = (
    "clipfast",
    "clipfast-compile",
    "clipfast-selective",
    "clipfast-full",
    "patched",
    "openclip",
    "openclip-channels-last",
    "openclip-compile",
    "openclip-checkpoint",
)
LARGEST_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class Case:
    """One training step to measure.

    Attributes:
        model: Name in ``clipfast.list_models()``.
        batch: Pairs B.
        precision: ``fp32``; ``tf32``, float32 whose products a GPU takes in TF32; or ``amp_bf16``,
            float32 weights under bfloat16 autocast.
        device: Where it runs.
        captions: Source of the captions' lengths.
        overrides: Changes to the model, by our flat names, as pairs.
    """

    model: str
    batch: int
    precision: str
    device: torch.device
    captions: str = "web"
    overrides: tuple[tuple[str, int], ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products and convolutions multiply."""
        return torch.bfloat16 if self.precision == "amp_bf16" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


@dataclass(frozen=True)
class Pairs:
    """The pairs of a case.

    Attributes:
        images: ``[B, 3, S, S]`` float32, contiguous, normally distributed.
        captions: B captions.
    """

    images: Tensor
    captions: Captions


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        key: One of :data:`CONTENDERS`.
        name: As in the table.
        model: Holds the parameters, under the names of the paper's released code.
        optimizer: Of these parameters; shared by the forms of one side.
        prepare: Called before each run.
        loss: The ordinary step's forward: the loss, with its graph.
        parts: The same in parts, for the breakdown: image features, text features, and the loss
            of both; None where the forward is one compiled function.
        autocast: Context of the forward.
    """

    key: str
    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    prepare: Callable[[], object]
    loss: Callable[[], Tensor]
    parts: tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[Tensor, Tensor], Tensor]]
    autocast: Callable[[], contextlib.AbstractContextManager]

    @property
    def is_ours(self) -> bool:
        return self.key.startswith("clipfast")

    def forward_backward(self) -> Tensor:
        """The loss, detached; its gradients are left in the parameters."""
        self.prepare()
        with self.autocast():
            loss = self.loss()
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """The optimizer's step, the clip of the log-scale, and gradients dropped."""
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, LARGEST_LOG_SCALE)
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """What is timed."""
        self.forward_backward()
        self.update()


def make_pairs(case: Case, image_size: int) -> Pairs:
    """Random images and captions, the same for every contender."""
    generator = torch.Generator(case.device).manual_seed(0)
    shape = (case.batch, 3, image_size, image_size)
    images = torch.randn(shape, generator=generator, device=case.device)
    return Pairs(images, make_captions(case.captions, case.batch, device=case.device))


class Field:
    """The contenders of a case, made as they are asked for.

    Attributes:
        case: What they run.
        ours, theirs: The plain models, which own the parameters of either side.
        batch: What they train on.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.ours, self.theirs = peers.build_pair(
            case.model, device=case.device, **dict(case.overrides)
        )
        self.batch = make_pairs(case, self.ours.config.vision.image_size)
        self._optimizers = {id(m): make_optimizer(m) for m in (self.ours, self.theirs)}
        version = peers.open_clip_version()
        theirs = partial(self._open_clip, name=f"OpenCLIP {version}")
        self._makers: dict[str, Callable[[str], Contender]] = {
            "clipfast": partial(self._clipfast, "clipfast"),
            "clipfast-compile": partial(self._clipfast, "clipfast, compiled blocks"),
            "clipfast-selective": partial(self._clipfast, "clipfast, recompute selective"),
            "clipfast-full": partial(self._clipfast, "clipfast, recompute full"),
            "patched": partial(self._patched, f"OpenCLIP {version}, patch_open_clip"),
            "openclip": theirs,
            "openclip-channels-last": theirs,
            "openclip-compile": theirs,
            "openclip-checkpoint": theirs,
        }

    def contender(self, key: str) -> Contender:
        """One contender."""
        return self._makers[key](key)

    def _clipfast(self, name: str, key: str) -> Contender:
        model = self.ours
        if key in ("clipfast-selective", "clipfast-full"):
            with torch.device("meta"):
                mode = key.removeprefix("clipfast-")
                model = create_model(self.case.model, recompute=mode, **dict(self.case.overrides))
            model.load_state_dict(self.ours.state_dict(keep_vars=True), assign=True)
        elif key == "clipfast-compile":
            model = share_parameters(self.ours)
            from clipfast.models.compile import compile_blocks

            compile_blocks(model)
        images = self.batch.images.contiguous(memory_format=torch.channels_last)
        captions = self.batch.captions
        tokens, lengths = captions.cut_tokens, captions.lengths

        def loss() -> Tensor:
            u, v, scale = model(images, tokens, lengths=lengths)
            return clipfast.clip_loss(u, v, scale)

        parts = (
            lambda: model.encode_image(images),
            lambda: model.encode_text(tokens, lengths),
            lambda u, v: clipfast.clip_loss(u, v, model.logit_scale.exp()),
        )
        return self._contender(key, name, model, self.ours, loss, parts)

    def _open_clip(self, key: str, name: str) -> Contender:
        """Its training program's step in one process; the loss module is its default's.

        With one process local and global loss are the same function.
        """
        model, images = self.theirs, self.batch.images
        if key == "openclip-channels-last":
            name += ", channels_last"
            images = images.contiguous(memory_format=torch.channels_last)
        if key == "openclip-checkpoint":
            name += ", its checkpointing"
        checkpoints = key == "openclip-checkpoint"
        prepare = partial(self.theirs.set_grad_checkpointing, checkpoints)
        call = model
        if key == "openclip-compile":
            name += ", torch.compile"
            call = torch.compile(model)
        loss, parts = _open_clip_loss(model, call, images, self.batch.captions.tokens)
        if key == "openclip-compile":
            parts = None
        return self._contender(key, name, model, self.theirs, loss, parts, prepare)

    def _patched(self, name: str, key: str) -> Contender:
        model = share_parameters(self.theirs)
        model.set_grad_checkpointing(False)
        # The class of OpenCLIP's loss stays: the rows beside this one use it.
        clipfast.patch_open_clip(model, loss=False)
        loss, parts = _open_clip_loss(
            model, model, self.batch.images, self.batch.captions.tokens, fused=True
        )
        return self._contender(key, name, model, self.theirs, loss, parts)

    def _contender(self, key, name, model, owner, loss, parts, prepare=lambda: None) -> Contender:
        optimizer = self._optimizers[id(owner)]
        return Contender(key, name, model, optimizer, prepare, loss, parts, self.case.autocast)


def _open_clip_loss(
    model: nn.Module, call: Callable, images: Tensor, tokens: Tensor, fused: bool = False
) -> tuple[Callable[[], Tensor], tuple]:
    open_clip = import_open_clip()
    loss_module = (clipfast.ClipLoss if fused else open_clip.loss.ClipLoss)(cache_labels=True)

    def loss() -> Tensor:
        return loss_module(**call(images, tokens))

    def of_features(u: Tensor, v: Tensor) -> Tensor:
        u, v = F.normalize(u, dim=-1), F.normalize(v, dim=-1)
        return loss_module(u, v, model.logit_scale.exp())

    parts = (lambda: model.encode_image(images), lambda: model.encode_text(tokens), of_features)
    return loss, parts


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def make_optimizer(model: CLIP | nn.Module) -> torch.optim.Optimizer:
    """The optimizer that every contender is timed with; it hardly moves the weights.

    Decay on everything but gains, biases and the log-scale (Radford et al. 2021, table 18).
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.2},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-7, betas=(0.9, 0.98), eps=1e-6, fused=True)

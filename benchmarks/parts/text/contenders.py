"""The text towers that ``text_tower.py`` compares, around two sets of equal weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import clipfast
from benchmarks.parts.common import peers
from benchmarks.parts.common.captions import Captions
from benchmarks.parts.common.contest import Absence, NotMeasured, reason_of
from benchmarks.parts.step.contenders import Case, share_parameters
from clipfast.models.compile import compile_blocks

CONTENDERS = ("clipfast", "clipfast-compile", "patched", "openclip", "openclip-compile")
OURS = ("clipfast", "clipfast-compile", "patched")
# A model with a text tower of that width; its image tower is cut to almost nothing.
MODELS = {512: "ViT-B/32", 640: "RN50x4", 768: "ViT-L/14", 1024: "RN50x64"}


@dataclass(frozen=True)
class Tower:
    """A contender.

    Attributes:
        key: One of :data:`CONTENDERS`.
        name: As in the table.
        model: Holds the parameters.
        encode: Captions -> features ``[B, D]``.
    """

    key: str
    name: str
    model: nn.Module
    encode: Callable[[Captions], Tensor]

    @property
    def is_ours(self) -> bool:
        return self.key.startswith("clipfast")

    def run(self, case: Case, captions: Captions, cotangent: Tensor) -> Tensor:
        """What is timed: features, and gradients into the parameters."""
        for parameter in self.model.parameters():
            parameter.grad = None
        with case.autocast():
            features = self.encode(captions)
        features.backward(cotangent.to(features.dtype))
        return features.detach()


def overrides_of(width: int) -> dict[str, int]:
    """Changes to :data:`MODELS` that leave almost nothing of the image tower."""
    if MODELS[width].startswith("RN"):
        return {"image_size": 32, "vision_layers": (1, 1, 1, 1), "vision_width": 32}
    return {"image_size": 28, "patch_size": 14, "vision_layers": 1, "vision_width": 64}


class Field:
    """The towers of a case, made as they are asked for.

    Attributes:
        ours, theirs: The plain models, which own the parameters of either side.
    """

    def __init__(self, case: Case) -> None:
        self.ours, self.theirs = peers.build_pair(
            case.model, device=case.device, **dict(case.overrides)
        )
        open_clip = f"OpenCLIP {peers.open_clip_version()}"
        self._makers: dict[str, Callable[[], Tower]] = {
            "clipfast": lambda: _ours("clipfast", "clipfast", self.ours),
            "clipfast-compile": self._compiled,
            "patched": partial(self._patched, f"{open_clip}, patch_open_clip"),
            "openclip": lambda: _theirs("openclip", open_clip, self.theirs),
            "openclip-compile": partial(self._open_clip_compiled, f"{open_clip}, torch.compile"),
        }

    def tower(self, key: str) -> Tower:
        """One tower.

        Raises:
            NotMeasured: patching leaves it alone.
        """
        return self._makers[key]()

    def towers(self, keys: Sequence[str]) -> tuple[list[Tower], list[Absence]]:
        """The towers asked for, and those that cannot be made here."""
        towers, absent = [], []
        for key in keys:
            try:
                towers.append(self.tower(key))
            except Exception as error:  # a failure is a line of the report, whatever it is
                absent.append(Absence(key, reason_of(error), key in OURS))
        return towers, absent

    def reference(self) -> Tower:
        """OpenCLIP's tower, what the others are compared with."""
        return _theirs("reference", "reference", self.theirs)

    def _compiled(self) -> Tower:
        compiled = share_parameters(self.ours)
        compile_blocks(compiled)
        return _ours("clipfast-compile", "clipfast, compiled blocks", compiled)

    def _patched(self, name: str) -> Tower:
        patched = share_parameters(self.theirs)
        report = clipfast.patch_open_clip(patched, loss=False)
        if "encode_text" not in report.swapped:
            raise NotMeasured(f"not swapped: {report.left_alone}")
        return _theirs("patched", name, patched)

    def _open_clip_compiled(self, name: str) -> Tower:
        compiled = torch.compile(self.theirs.encode_text)
        return Tower("openclip-compile", name, self.theirs, lambda c: compiled(c.tokens))


def _ours(key: str, name: str, model: nn.Module) -> Tower:
    return Tower(key, name, model, lambda c: model.encode_text(c.cut_tokens, c.lengths))


def _theirs(key: str, name: str, model: nn.Module) -> Tower:
    return Tower(key, name, model, lambda c: model.encode_text(c.tokens))

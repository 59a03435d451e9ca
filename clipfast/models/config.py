"""Architectures of the nine CLIP models, and of two tiny ones for tests, as frozen dataclasses.

Source: Radford et al. 2021, tables 18 to 20.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Checkpoint = Literal["none", "selective", "full", "auto"]
CHECKPOINTS = get_args(Checkpoint)

_TOWER_FIELDS = ("layers", "width", "head_width")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ResNetConfig:
    """Image tower: a ResNet with a three-conv stem, anti-aliased strides and attention pooling.

    Args:
        layers: bottleneck blocks in each of the four stages.
        width: channels after the stem; the last stage has 32 * width.
        image_size: side of the square input, in pixels.
        head_width: channels of one attention-pooling head.

    Raises:
        ValueError: where no such tower exists.
    """

    layers: tuple[int, int, int, int]
    width: int = 64
    image_size: int = 224
    head_width: int = 64

    def __post_init__(self) -> None:
        layers = tuple(self.layers) if isinstance(self.layers, Iterable) else (self.layers,)
        object.__setattr__(self, "layers", layers)
        _require(
            len(layers) == 4 and min(layers) > 0,
            f"a ResNet needs four positive block counts, got vision_layers={self.layers}",
        )
        _require(
            self.width > 0 and self.width % 2 == 0,
            f"the stem halves vision_width: give a positive even number, got {self.width}",
        )
        _require(
            self.head_width > 0 and self.embed_width % self.head_width == 0,
            f"vision_head_width={self.head_width} must divide 32 * vision_width = "
            f"{self.embed_width}",
        )
        _require(
            self.grid_size > 0, f"image_size must be at least 31 pixels, got {self.image_size}"
        )

    @property
    def embed_width(self) -> int:
        """Channels that the attention pooling sees."""
        return 32 * self.width

    @property
    def heads(self) -> int:
        """Attention-pooling heads."""
        return self.embed_width // self.head_width

    @property
    def grid_size(self) -> int:
        """Side of the last feature map: the stem's conv rounds up, the four pools round down."""
        return (self.image_size + 1) // 2 // 16


@dataclass(frozen=True)
class ViTConfig:
    """Image tower: a pre-norm vision transformer with a class token.

    Args:
        layers: transformer blocks.
        width: channels of a token.
        patch_size: side of a patch, in pixels.
        image_size: side of the square input, in pixels.
        head_width: channels of one attention head.

    Raises:
        ValueError: where no such tower exists.
    """

    layers: int
    width: int
    patch_size: int
    image_size: int = 224
    head_width: int = 64

    def __post_init__(self) -> None:
        _require(self.layers > 0, f"vision_layers must be positive, got {self.layers}")
        _require(
            self.width > 0 and self.head_width > 0 and self.width % self.head_width == 0,
            f"vision_head_width={self.head_width} must divide vision_width={self.width}",
        )
        _require(
            self.patch_size > 0 and self.image_size > 0 and self.image_size % self.patch_size == 0,
            f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}: "
            "pixels at the edge would be dropped",
        )

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """Text tower: a causal pre-norm transformer read at the end-of-text token.

    Args:
        layers: transformer blocks.
        width: channels of a token.
        head_width: channels of one attention head.
        context_length: most tokens a caption may have, start and end included.
        vocab_size: rows of the token embedding.

    Raises:
        ValueError: where no such tower exists.
    """

    layers: int = 12
    width: int = 512
    head_width: int = 64
    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self) -> None:
        for name in ("layers", "context_length", "vocab_size"):
            _require(getattr(self, name) > 0, f"text {name} must be positive")
        _require(
            self.width > 0 and self.head_width > 0 and self.width % self.head_width == 0,
            f"text_head_width={self.head_width} must divide text_width={self.width}",
        )

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width


@dataclass(frozen=True)
class ModelConfig:
    """A whole CLIP model.

    Args:
        name: the model's name in `list_models()`; it stays when fields are overridden.
        embed_dim: width D of the joint embedding.
        vision: the image tower.
        text: the text tower.
        checkpoint: what residual blocks keep for the backward pass: "none", "selective", "full"
            (see `clipfast.models.recompute`), or "auto", which the engine resolves and with which
            no model can be built.

    Raises:
        ValueError: if `embed_dim` is not positive, or `checkpoint` is none of those.
    """

    name: str
    embed_dim: int
    vision: ResNetConfig | ViTConfig
    text: TextConfig = TextConfig()
    checkpoint: Checkpoint = "none"

    def __post_init__(self) -> None:
        _require(self.embed_dim > 0, f"embed_dim must be positive, got {self.embed_dim}")
        _require(
            self.checkpoint in CHECKPOINTS,
            f"checkpoint must be one of {', '.join(CHECKPOINTS)}; got {self.checkpoint!r}",
        )

    @property
    def resolved_checkpoint(self) -> str:
        """The checkpoint mode to build with.

        Raises:
            ValueError: for "auto", with the remedy.
        """
        _require(
            self.checkpoint != "auto",
            "checkpoint='auto' depends on batch, precision and free memory, which the engine knows "
            "and a model does not: build it with 'none', 'selective' or 'full' "
            "(clipfast.models.memory.fastest_checkpoint picks one)",
        )
        return self.checkpoint

    def override(self, **overrides: Any) -> ModelConfig:
        """A copy with some fields replaced, by flat names.

        Args:
            overrides: `embed_dim`, `checkpoint`; of the image tower `image_size`,
                `vision_layers`, `vision_width`, `vision_head_width` and, for a ViT,
                `patch_size`; of the text tower `context_length`, `vocab_size`, `text_layers`,
                `text_width`, `text_head_width`.

        Returns:
            The new configuration, checked.

        Raises:
            ValueError: for a name that this model lacks, or a value with which it cannot exist.
        """
        places = self._flat_names()
        changes: dict[str | None, dict[str, Any]] = {None: {}, "vision": {}, "text": {}}
        for name, value in overrides.items():
            if name not in places:
                raise ValueError(unknown_name("override", name, places, f" of {self.name}"))
            tower, field = places[name]
            changes[tower][field] = value
        return replace(
            self,
            vision=replace(self.vision, **changes["vision"]),
            text=replace(self.text, **changes["text"]),
            **changes[None],
        )

    def _flat_names(self) -> dict[str, tuple[str | None, str]]:
        names: dict[str, tuple[str | None, str]] = {
            "embed_dim": (None, "embed_dim"),
            "checkpoint": (None, "checkpoint"),
        }
        for tower in ("vision", "text"):
            for field in fields(getattr(self, tower)):
                flat = f"{tower}_{field.name}" if field.name in _TOWER_FIELDS else field.name
                names[flat] = (tower, field.name)
        return names


def unknown_name(kind: str, name: str, known: Iterable[str], of: str = "") -> str:
    """The message for a name that does not exist: what was given, the nearest, and all there are.

    Args:
        kind: what the name stands for, such as "model".
        name: what was given.
        known: every name that exists.
        of: to what they belong, with its leading blank.

    Returns:
        One line of text.
    """
    known = list(known)
    lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
    return f"unknown {kind} {name!r}{of}.{hint} Known: {', '.join(known)}"


_CONFIGS = {
    config.name: config
    for config in (
        ModelConfig("RN50", 1024, ResNetConfig((3, 4, 6, 3))),
        ModelConfig("RN101", 512, ResNetConfig((3, 4, 23, 3))),
        ModelConfig("RN50x4", 640, ResNetConfig((4, 6, 10, 6), 80, 288), TextConfig(width=640)),
        ModelConfig("RN50x16", 768, ResNetConfig((6, 8, 18, 8), 96, 384), TextConfig(width=768)),
        ModelConfig(
            "RN50x64", 1024, ResNetConfig((3, 15, 36, 10), 128, 448), TextConfig(width=1024)
        ),
        ModelConfig("ViT-B/32", 512, ViTConfig(12, 768, 32)),
        ModelConfig("ViT-B/16", 512, ViTConfig(12, 768, 16)),
        ModelConfig("ViT-L/14", 768, ViTConfig(24, 1024, 14), TextConfig(width=768)),
        ModelConfig("ViT-L/14@336px", 768, ViTConfig(24, 1024, 14, 336), TextConfig(width=768)),
        ModelConfig("RN-tiny", 256, ResNetConfig((1, 1, 2, 1), 32, 64), TextConfig(4, 192)),
        ModelConfig("ViT-tiny", 256, ViTConfig(7, 256, 8, 64), TextConfig(4, 192)),
    )
}


def list_models() -> list[str]:
    """Names that `create_model` knows: the paper's nine, then two of 17M parameters for tests.

    Returns:
        The names, ResNets before ViTs, smaller before larger, the tiny ones last.
    """
    return list(_CONFIGS)


def get_config(name: str, **overrides: Any) -> ModelConfig:
    """The configuration of one model.

    Args:
        name: one of `list_models()`.
        overrides: flat field names, see `ModelConfig.override`.

    Returns:
        The checked configuration.

    Raises:
        ValueError: for an unknown name, with the nearest one, or an override that does not fit.
    """
    if name not in _CONFIGS:
        raise ValueError(unknown_name("model", name, _CONFIGS))
    return _CONFIGS[name].override(**overrides)

"""What a CLIP model consists of: its towers and the space between them, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from clipfast.arguments import WrongKindError, real_number, shown
from clipfast.models.checks import require, require_whole, unknown_name
from clipfast.models.layers import ACTIVATIONS, Activation
from clipfast.models.recompute import MODES, Recompute
from clipfast.models.renamed import renamed_argument, warn_renamed
from clipfast.models.towers import TowerConfig

_TOWER_FIELDS = ("layers", "width", "head_width")


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
        require_whole(
            text_layers=self.layers,
            text_width=self.width,
            text_head_width=self.head_width,
            context_length=self.context_length,
            vocab_size=self.vocab_size,
        )
        for name in ("layers", "context_length", "vocab_size"):
            require(getattr(self, name) > 0, f"text {name} must be positive")
        require(
            self.width > 0 and self.head_width > 0 and self.width % self.head_width == 0,
            f"text_head_width={self.head_width} must divide text_width={self.width}",
        )

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.width // self.head_width


@dataclass(frozen=True)
class Architecture:
    """A whole CLIP model.

    Args:
        name: the model's name in `list_models()`; it stays when fields are overridden.
        embed_dim: width D of the joint embedding.
        vision: the image tower, a configuration that `register_tower` knows.
        text: the text tower. None: there is none, and a pair is a picture and its distortion, both
            read by the image tower (`clipfast.data.pairs`).
        recompute: what residual blocks keep for the backward pass: "none", "selective", "full"
            (see `clipfast.models.recompute`), or "auto", which the engine resolves and with which
            no model can be built. Until 0.3 also by its old name, `checkpoint`.
        scalars: parameters of one element beside `logit_scale` that an objective brings, as pairs
            of name and starting value. A pair "logit_scale" changes where that one starts.
        activation: of the transformer blocks: "quick_gelu", which the paper's models have, or
            "gelu", which OpenCLIP's models have whose names do not end in "-quickgelu".
        temperature: of the loss, where it is fixed: logits are divided by it, and nothing learns
            it. None: `logit_scale` is a parameter.

    Raises:
        ValueError: if `embed_dim` or `temperature` is not positive, or `recompute` or `activation`
            is none of those.
    """

    name: str
    embed_dim: int
    vision: TowerConfig
    text: TextConfig | None = TextConfig()
    recompute: Recompute = "none"
    scalars: tuple[tuple[str, float], ...] = ()
    activation: Activation = "quick_gelu"
    temperature: float | None = None

    def __post_init__(self) -> None:
        require_whole(embed_dim=self.embed_dim)
        require(self.embed_dim > 0, f"embed_dim must be positive, got {self.embed_dim}")
        _check_scalars(self.scalars)
        if self.temperature is not None:
            real_number("temperature", self.temperature)
            require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        modes = (*MODES, "auto")
        require(
            self.recompute in modes,
            f"recompute must be one of {', '.join(modes)}; got {self.recompute!r}",
        )
        require(
            self.activation in ACTIVATIONS,
            f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}",
        )

    @property
    def captions(self) -> TextConfig:
        """The text tower, for what cannot go on without one.

        Raises:
            ValueError: there is none.
        """
        if self.text is None:
            raise ValueError(
                f"{self.name} reads pictures alone: it has no text tower. Take a model of "
                "list_models() for captions"
            )
        return self.text

    @property
    def resolved_recompute(self) -> Recompute:
        """The mode of recomputation to build with.

        Raises:
            ValueError: for "auto", with the remedy.
        """
        require(
            self.recompute != "auto",
            "recompute='auto' depends on batch, precision and free memory, which the engine knows "
            "and a model does not: build it with 'none', 'selective' or 'full' "
            "(clipfast.models.activations.fastest_recompute picks one)",
        )
        return self.recompute

    @property
    def checkpoint(self) -> Recompute:
        """The old name of `recompute`."""
        warn_renamed("checkpoint", "recompute")
        return self.recompute

    @renamed_argument("checkpoint", "recompute")
    def override(self, **overrides: Any) -> Architecture:
        """A copy with some fields replaced, by flat names.

        Args:
            overrides: `embed_dim`, `recompute`, `scalars`, `activation`, `temperature`; of the
                image tower `image_size`, `vision_layers`, `vision_width`, `vision_head_width` and,
                for a ViT, `patch_size`; of the text tower `context_length`, `vocab_size`,
                `text_layers`, `text_width`, `text_head_width`. Those of another image tower: see
                `TowerConfig`.

        Returns:
            The new architecture, checked.

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
            text=self.text and replace(self.text, **changes["text"]),
            **changes[None],
        )

    def flat(self) -> dict[str, Any]:
        """The model's shape, by the flat names of `override`: all but `recompute`, which changes no
        result, `scalars`, which the objective brings, and `activation`, which stands apart in
        files of weights; and `temperature` where it is fixed."""
        places = {None: self, "vision": self.vision, "text": self.text}
        return {
            name: getattr(places[tower], field)
            for name, (tower, field) in self._flat_names().items()
            if name not in ("recompute", "scalars", "activation")
            and (name != "temperature" or self.temperature is not None)
        }

    def _flat_names(self) -> dict[str, tuple[str | None, str]]:
        names: dict[str, tuple[str | None, str]] = {
            "embed_dim": (None, "embed_dim"),
            "recompute": (None, "recompute"),
            "scalars": (None, "scalars"),
            "activation": (None, "activation"),
            "temperature": (None, "temperature"),
        }
        for field in fields(self.text) if self.text else ():
            flat = f"text_{field.name}" if field.name in _TOWER_FIELDS else field.name
            names[flat] = ("text", field.name)
        for field in fields(self.vision):
            is_taken = field.name in _TOWER_FIELDS or field.name in names
            names[f"vision_{field.name}" if is_taken else field.name] = ("vision", field.name)
        return names


def _check_scalars(scalars: Any) -> None:
    try:
        pairs = [(name, start) for name, start in scalars]
    except (TypeError, ValueError):
        raise WrongKindError(
            f"scalars must be pairs of a name and a starting value; got {shown(scalars)}"
        ) from None
    for name, start in pairs:
        require(
            isinstance(name, str) and name.isidentifier(),
            f"scalars: a name is letters, digits and '_', as of an attribute; got {name!r}",
        )
        real_number(f"scalars: {name}", start)


setattr(  # noqa: B010
    Architecture,
    "__init__",
    renamed_argument("checkpoint", "recompute")(vars(Architecture)["__init__"]),
)

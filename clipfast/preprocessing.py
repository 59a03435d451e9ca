"""How pixels reach a model: the constants of the loaders, and how files of weights tell them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Mean and standard deviation of the paper's training images, per channel, for pixels in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a model sees it, in OpenCLIP's words.

    Args:
        image_size: side of the square that the model reads, in pixels.
        mean: per channel, for pixels in [0, 1].
        std: standard deviation per channel, for pixels in [0, 1].
        interpolation: of the resize.
        resize_mode: "shortest" brings the shorter side to `image_size` and cuts the middle out,
            "squash" both sides, whatever that does to the aspect.
    """

    image_size: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def as_openclip(self) -> dict[str, Any]:
        """The fields of OpenCLIP's `preprocess_cfg`."""
        return {
            "size": self.image_size,
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": 0,
        }

    def differences(self, wanted: Preprocessing) -> list[str]:
        """What a model that was trained with this will meet otherwise.

        Args:
            wanted: how images will be prepared.

        Returns:
            A sentence for each field that differs.
        """
        texts = []
        if self.image_size != wanted.image_size:
            texts.append(
                f"trained at {self.image_size} pixels, this run reads {wanted.image_size}: "
                "positions are interpolated"
            )
        for name in ("mean", "std", "interpolation", "resize_mode"):
            before, now = getattr(self, name), getattr(wanted, name)
            if before != now:
                texts.append(
                    f"trained with {name} {_text(before)}, this run has {_text(now)}: features "
                    "differ until the model is trained on"
                )
        return texts


def _text(value: str | tuple[float, ...]) -> str:
    return value[:40] if isinstance(value, str) else ", ".join(f"{each:g}" for each in value)

"""The door for image towers: what a kind of tower tells the rest of the package about itself.

    @dataclass(frozen=True)
    class StripesConfig:
        layers: int
        image_size: int = 224

    register_tower(Tower(StripesConfig, Stripes, first_weight="stem.weight", blocks=(Stripe,)))
    register_model(Architecture("Stripes-B", 512, StripesConfig(layers=12)))

From then on the model works like any other: in `create_model`, `load_weights` and `export`, with
recomputation, compiled blocks, counted memory and in the engine. The two towers of the paper come
in through the same door (`resnet.py`, `vit.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from clipfast.models.positions import resize_grid


class TowerConfig(Protocol):
    """A frozen dataclass whose fields describe one image tower.

    Its `__post_init__` raises ValueError where no such tower exists. Fields become overrides of
    `create_model` by their own names; `layers`, `width` and `head_width` with `vision_` in front,
    and so does a field that the text tower has too.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        ...


@dataclass(frozen=True)
class Tower:
    """A kind of image tower.

    Names of parameters and buffers are relative to the tower: "stem.weight" is the model's
    "visual.stem.weight".

    Args:
        config: the class of its configuration, by which it is found.
        build: (configuration, output width D, mode of recomputation) -> the module, which maps
            images [B, 3, S, S] to features [B, D]. Each of its modules initialises itself in its
            constructor, by a `reset_parameters` of its own.
        first_weight: the parameter that meets the pixels. Images are cast to its type; a state
            dict of the model contains it.
        blocks: classes of its residual blocks, without dropout. The tower calls each through
            `run_block`, with which recomputation and compilation come.
        recomputes_in_graph: a compiled block recomputes inside its graph. False recomputes around
            it, which serves every block; True saves a graph where the block's arguments and
            results are tensors and constants.
        zero3_leaves: classes of modules that read weights of their children without calling them.
            ZeRO-3 gathers all of such a module at its door.
        positions: tables of learned positions that `load_weights(resize_positions=True)`
            interpolates.
        resize: (table in the file, shape in the model) -> the table in that shape, or as it is
            where it does not apply; by default that of a square grid behind one further row.
        has_batch_norm: its batch norms are `clipfast.models.batch_norm.BatchNorm2d`, whose
            statistics `--model.sync-bn` and `--bn-batch` share. False: there are none.
        published: name here -> name in OpenAI's and OpenCLIP's state dicts, where they differ;
            whole names, or prefixes that end in a dot.
    """

    config: type
    build: Callable[[Any, int, str], nn.Module]
    first_weight: str
    blocks: tuple[type[nn.Module], ...] = ()
    recomputes_in_graph: bool = False
    zero3_leaves: tuple[type[nn.Module], ...] = ()
    positions: tuple[str, ...] = ()
    resize: Callable[[Tensor, tuple[int, ...]], Tensor] = resize_grid
    has_batch_norm: bool = False
    published: Mapping[str, str] = field(default_factory=dict)

    def input_dtype(self, visual: nn.Module) -> torch.dtype:
        """The type that images are cast to.

        Args:
            visual: a tower of this kind.
        """
        return visual.get_parameter(self.first_weight).dtype


_TOWERS: dict[type, Tower] = {}


def register_tower(tower: Tower) -> Tower:
    """Make a kind of tower known, for every model whose `vision` is a configuration of its class.

    Args:
        tower: the description.

    Returns:
        The same description.

    Raises:
        ValueError: the class of configuration has a tower already; or another tower has the same
            first weight and other published names, so that a state dict could be of either.
    """
    if tower.config in _TOWERS:
        raise ValueError(f"{tower.config.__name__} has a tower already: give yours another class")
    for other in _TOWERS.values():
        same = other.first_weight == tower.first_weight
        if same and dict(other.published) != dict(tower.published):
            raise ValueError(
                f"{tower.config.__name__} and {other.config.__name__} both begin with "
                f"{tower.first_weight!r} and differ in their published names: rename one of the "
                "two weights, or a state dict tells nobody whose it is"
            )
    _TOWERS[tower.config] = tower
    return tower


def registered_towers() -> list[Tower]:
    """All kinds of towers, in the order in which they were registered."""
    return list(_TOWERS.values())


def tower_of(config: TowerConfig) -> Tower:
    """The kind of tower that a configuration describes.

    Args:
        config: of an image tower.

    Raises:
        ValueError: no tower was registered for its class.
    """
    if type(config) not in _TOWERS:
        known = ", ".join(kind.__name__ for kind in _TOWERS)
        raise ValueError(
            f"no tower for a {type(config).__name__}: call register_tower first. Known: {known}"
        )
    return _TOWERS[type(config)]

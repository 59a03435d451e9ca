"""What an evaluation is, and what a run gives it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from clipfast.eval.setencoder import SetEncoder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Pairs:
    """Image-text pairs in their order, encoded; the same on every rank.

    Attributes:
        source: the set's name, or the shards' pattern, as it was asked for.
        image_features: ``[N, D]`` float32, on the run's device, not normalised.
        text_features: ``[N, D]`` likewise.
        mine: the pairs that this rank encoded, for work that the ranks share.
        image_ids: ``[N]`` int64 on the CPU, equal where two pairs hold the same image file.
        caption_ids: ``[N]`` likewise, equal where two captions have the same words.
        image: the i-th picture.
        caption: the i-th caption.
    """

    source: str
    image_features: Tensor
    text_features: Tensor
    mine: slice
    image_ids: Tensor
    caption_ids: Tensor
    image: Callable[[int], "Image"]
    caption: Callable[[int], str]

    def __len__(self) -> int:
        """N."""
        return len(self.image_features)


class PairSource(Protocol):
    """What can be known of the data before there is a model.

    Attributes:
        world_size: number of ranks.
    """

    @property
    def world_size(self) -> int: ...

    def count(self, source: str) -> int:
        """Pairs of a set, at most ``--data.eval-limit``.

        Args:
            source: its name, or a pattern of shards.

        Raises:
            ValueError: a shard or its index is unfit.
        """
        ...


class Encoder(PairSource, Protocol):
    """A model in evaluation mode with its data. Every method is a collective: all ranks call it.

    Attributes:
        device: of the features.
    """

    @property
    def device(self) -> torch.device: ...

    def pairs(self, source: str) -> Pairs:
        """All pairs of some shards, encoded by all ranks together.

        Args:
            source: a set's name, one of ``EvaluationData.sources``, or a pattern of shards.
        """
        ...

    def sets(self) -> SetEncoder:
        """What encodes labelled and captioned sets, such as ``clipfast.eval.sets.open_set`` gives;
        ``clipfast.eval.zeroshot.classify`` takes it."""
        ...

    def images(self, images: Tensor) -> Tensor:
        """Image features ``[B, D]`` float32 of pixels ``[B, 3, S, S]``, the same call on each
        rank."""
        ...

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Text features ``[N, D]`` float32 of some captions, the same call on each rank."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows in rank order.

        Args:
            rows: ``[n, ...]``; n may differ from rank to rank.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What an evaluation found on one set of data.

    Attributes:
        scalars: by name, ``eval/...``; a row of ``metrics.jsonl``, and curves in TensorBoard.
        lines: for a person, said while the model trains.
    """

    scalars: Mapping[str, float]
    lines: Sequence[str] = ()


class Evaluation(ABC):
    """A measure of a model in training.

    The engine calls ``check`` once, before the model is built, then ``run`` as often as the run is
    evaluated, and ``summary`` and ``figure`` at its end, with what the last ``run`` gave.
    """

    def check(self, data: PairSource) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse at the start of a run what would fail days later.

        Raises:
            ValueError: with the option and the remedy.
        """

    @abstractmethod
    def run(self, encoder: Encoder) -> Sequence[Measured]:
        """Measure; every rank calls it and gets the same scalars.

        Args:
            encoder: the model as it is now.

        Returns:
            One entry per set of data.
        """

    def summary(self, measured: Sequence[Any]) -> list[str]:
        """Lines for the end of a run; by default those that were said already.

        Args:
            measured: what the last ``run`` returned.
        """
        return [line for entry in measured for line in entry.lines]

    def figure(self, measured: Sequence[Any], path: Path) -> bool:
        """Draw what was measured, on rank 0.

        Args:
            measured: what the last ``run`` returned.
            path: of the PNG.

        Returns:
            Whether something was drawn; by default nothing is.
        """
        return False

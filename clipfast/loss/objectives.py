"""The door for objectives: what a run minimises, as the engine needs to know it.

    class Margin(Objective):
        name = "margin"
        scalars = {"margin": 0.2}

        def loss(self, image_features, texts, logit_scale, margin, *, batch_sizes):
            ...

    register_objective(Margin())            # then: --loss.name margin

From then on the engine trains with it, whole batches and micro-batches, and the scalars that it
brings are parameters of the model: the optimizer updates them, checkpoints and exports hold them.

Legend: B local batch, G global batch, D embedding width, W ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from clipfast.loss.contrastive import clip_loss, gather_texts
from clipfast.loss.traffic import Transfer, contrastive_transfers
from clipfast.loss.workspace import needed_bytes
from clipfast.names import did_you_mean


class Objective(ABC):
    """A loss over the global batch.

    Attributes:
        name: by which `--loss.name` finds it.
        scalars: parameters of one element that it brings, name -> starting value. They become
            parameters of the model beside `logit_scale`. An entry "logit_scale" changes where that
            one starts, log(1 / 0.07) otherwise.
    """

    name: str
    scalars: Mapping[str, float] = MappingProxyType({})

    def prepare(self, text_features: Tensor, batch_sizes: Sequence[int]) -> Any:
        """Start what the loss needs of the texts; the image tower runs meanwhile.

        Args:
            text_features: [B, D], not normalised.
            batch_sizes: B of every rank.

        Returns:
            What `loss` takes as `texts`; by default the features themselves.
        """
        return text_features

    @abstractmethod
    def loss(
        self,
        image_features: Tensor,
        texts: Any,
        logit_scale: Tensor,
        *scalars: Tensor,
        batch_sizes: Sequence[int],
    ) -> Tensor:
        """The loss of the global batch.

        Args:
            image_features: [B, D], not normalised.
            texts: what `prepare` returned.
            logit_scale: [1], exp of the parameter.
            scalars: [1] each, in the order of `self.scalars` without "logit_scale".
            batch_sizes: B of every rank.

        Returns:
            A scalar, the same on every rank. After the mean over ranks that the engine applies, its
            gradients are those of one process holding the whole batch.
        """

    def held_bytes(self, local_batch: int, global_batch: int) -> int:
        """Bytes that a rank holds between forward and backward; by default one float32 per logit.

        Args:
            local_batch: B.
            global_batch: G.
        """
        return 4 * local_batch * global_batch

    def peak_bytes(
        self,
        local_batch: int,
        global_batch: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> int:
        """Bytes that a rank holds while the loss is computed; by default what `held_bytes` says.

        Args:
            local_batch: B.
            global_batch: G.
            width: D.
            dtype: of the features.
            device: where they are.
        """
        return self.held_bytes(local_batch, global_batch)

    def transfers(
        self,
        global_batch: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        autocast: bool,
        behind_towers: bool,
    ) -> list[Transfer]:
        """What its collectives move in a step over several ranks; by default nothing is known of.

        Args:
            global_batch: G.
            width: D.
            dtype: of the features.
            device: where they are.
            autocast: the loss runs under autocast to half precision.
            behind_towers: the image tower runs between `prepare` and `loss`.
        """
        return []


class Contrastive(Objective):
    """The symmetric softmax loss of the paper, see `clip_loss`."""

    name = "contrastive"

    def prepare(self, text_features: Tensor, batch_sizes: Sequence[int]) -> Any:
        """Start the gather of the texts."""
        return gather_texts(text_features, batch_sizes=batch_sizes)

    def loss(
        self,
        image_features: Tensor,
        texts: Any,
        logit_scale: Tensor,
        *scalars: Tensor,
        batch_sizes: Sequence[int],
    ) -> Tensor:
        """See `Objective.loss`."""
        return clip_loss(image_features, texts, logit_scale)

    def peak_bytes(
        self,
        local_batch: int,
        global_batch: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> int:
        """See `workspace.needed_bytes`."""
        return needed_bytes(local_batch, global_batch, width, dtype, device)

    def transfers(
        self,
        global_batch: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        autocast: bool,
        behind_towers: bool,
    ) -> list[Transfer]:
        """See `contrastive_transfers`."""
        return contrastive_transfers(
            global_batch, width, dtype, device, autocast=autocast, behind_towers=behind_towers
        )


CONTRASTIVE = Contrastive()
_OBJECTIVES: dict[str, Objective] = {CONTRASTIVE.name: CONTRASTIVE}


def register_objective(objective: Objective) -> Objective:
    """Make an objective known by its name.

    Args:
        objective: the objective.

    Returns:
        The same one.

    Raises:
        ValueError: the name is taken, or a scalar's name is none that a parameter can have.
    """
    if objective.name in _OBJECTIVES:
        raise ValueError(f"there is an objective {objective.name!r} already: give yours a new name")
    odd = [name for name in objective.scalars if not name.isidentifier()]
    if odd:
        raise ValueError(f"a scalar is named like a variable, without dots; got {', '.join(odd)}")
    _OBJECTIVES[objective.name] = objective
    return objective


def list_objectives() -> list[str]:
    """Names that `get_objective` knows."""
    return list(_OBJECTIVES)


def get_objective(name: str) -> Objective:
    """The objective of a name.

    Args:
        name: one of `list_objectives()`.

    Raises:
        ValueError: for an unknown name, with the nearest one and all there are.
    """
    if name not in _OBJECTIVES:
        hint = did_you_mean(name, _OBJECTIVES)
        raise ValueError(f"unknown objective {name!r}.{hint} Known: {', '.join(_OBJECTIVES)}")
    return _OBJECTIVES[name]

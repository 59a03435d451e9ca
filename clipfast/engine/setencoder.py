"""The model of a run encodes the images and texts of data sets, by all ranks together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipfast.devices import to_device
from clipfast.engine import progress
from clipfast.engine.plan import RunPlan
from clipfast.eval.penultimate import penultimate
from clipfast.eval.setencoder import Layer, SetEncoder
from clipfast.eval.sharing import Sharing
from clipfast.preprocessing import Preprocessing


class RunSetEncoder(SetEncoder):
    """See ``SetEncoder``. It calls the engine itself, which gathers weights under ZeRO-3.

    Args:
        engine: the DeepSpeed engine, in evaluation mode.
        plan: of the run.
        between: called by every rank before each batch.
    """

    def __init__(self, engine: Any, plan: RunPlan, between: Callable[[], None]) -> None:
        process, architecture = plan.process, plan.architecture
        super().__init__(
            Preprocessing(architecture.vision.image_size),
            architecture.captions.context_length,
            plan.config.data.eval_batch_size,
            process.device,
            plan.dtype,
            Sharing(process.rank, process.world_size),
            plan.decode_threads,
            # The run's own bar is there.
            shows_progress=False,
        )
        self._engine = engine
        self._between = between
        self._scale: float | None = None

    @property
    def scale(self) -> float:
        """exp(logit_scale), the learned one; known once something is encoded."""
        assert self._scale is not None, "nothing was encoded"
        return self._scale

    def between(self) -> None:
        """See ``SetEncoder``."""
        self._between()

    def alive(self) -> None:
        """See ``SetEncoder``."""
        progress.again()

    @torch.no_grad()
    def prepared(self, images: Tensor, layer: Layer = "projected") -> Tensor:
        """See ``SetEncoder``."""
        images = to_device(images, self.device)
        if layer == "penultimate":
            features = penultimate(self._engine.module, images, self._image_features)
        else:
            features = self._image_features(images)
        return features.float().cpu()

    @torch.no_grad()
    def tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See ``SetEncoder``."""
        _, features, scale, *_ = self._engine(
            tokens=to_device(tokens, self.device), lengths=lengths
        )
        self._scale = scale.item()
        encoded: Tensor = features
        return encoded.float().cpu()

    def _image_features(self, images: Tensor) -> Tensor:
        features, _, scale, *_ = self._engine(images=images)
        self._scale = scale.item()
        encoded: Tensor = features
        return encoded

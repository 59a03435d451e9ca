"""DALI's verdict on images, from the graph that training runs."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Images per run of the graph.
BATCH = 64
# The smallest crop will do: an image fails where it is decoded.
_SIZE = 8
_CROP = np.array([1.0, 0.5, 0.5], np.float32)


def _build_pipeline() -> Any:
    from nvidia.dali import fn, pipeline_def, types

    from clipfast.data.decode import normalised_crops

    @pipeline_def(
        batch_size=BATCH,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def decode() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        crop = fn.external_source(name="crop", dtype=types.FLOAT, ndim=1)
        return normalised_crops(encoded, crop, _SIZE)

    pipeline = decode()
    pipeline.build()
    return pipeline


class DaliDecoder:
    """Decodes batches with DALI on the CPU and says which images it refuses.

    A pipeline is dead after its first error, so a failing batch is repeated image by image, each
    refused one costing a new pipeline (5 ms).
    """

    def __init__(self, build: Callable[[], Any] = _build_pipeline) -> None:
        self._build = build
        self._pipeline: Any = None

    def _run(self, images: Sequence[np.ndarray]) -> str:
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input("encoded", list(images))
        self._pipeline.feed_input("crop", [_CROP] * len(images))
        try:
            self._pipeline.run()
        except RuntimeError as error:
            self._pipeline = None
            return _reason(str(error))
        return ""

    def check(self, images: Sequence[np.ndarray]) -> list[str]:
        """Reason for each image that DALI refuses, '' for the others.

        Args:
            images: uint8 ``[N]`` each, as ``clipfast.data.prepare`` gives them.
        """
        if not images:
            return []
        if not self._run(images):
            return [""] * len(images)
        if len(images) > 1:
            return [self._run([data]) for data in images]
        return [self._run(images)]


# Status numbers of nvImageCodec, the library behind DALI's decoders.
_NVIMAGECODEC = {"3": "broken stream", "4": "unsupported format"}


def _reason(message: str) -> str:
    """The line of DALI's error that says what happened, without its traceback."""
    _, _, tail = message.partition("encountered:")
    lines = [line.strip() for line in (tail or message).splitlines() if line.strip()]
    text = next((line for line in lines if "ailed" in line or "ailure" in line), lines[0])
    if text.startswith("Failed to decode sample"):
        text = "it begins well and does not decode to its end"
    status = re.fullmatch(r"nvImageCodec failure: '#(\d+)'", text)
    if status and status.group(1) in _NVIMAGECODEC:
        text = _NVIMAGECODEC[status.group(1)]
    return f"image is refused by DALI: {text[:200]}"

"""DALI's verdict on images, from the graph that training runs."""

import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Images per run of the graph.
BATCH = 64
# A small crop will do, and costs little: an image fails where it is decoded.
_SIZE = 8
_CUT = np.array([0.02, 0.5, 0.5, 1, 1], np.float32)


# A picture that every decoder reads: one grey point, as a BMP.
SOUND = np.frombuffer(
    struct.pack("<2sI4xI", b"BM", 58, 54)
    + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 24, 0, 4, 2835, 2835, 0, 0)
    + b"\x80\x80\x80\0",
    np.uint8,
)


def build_pipeline(device_id: int | None = None, threads: int = 1) -> Any:
    """The graph, for images that are fed by hand.

    Args:
        device_id: of the GPU that decodes; None: the CPU does.
        threads: of the CPU.
    """
    from nvidia.dali import fn, pipeline_def, types

    from clipfast.data.decode import resized_crops

    @pipeline_def(
        batch_size=BATCH,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    def decode() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        cut = fn.external_source(name="cut", dtype=types.FLOAT, ndim=1)
        return resized_crops(encoded, cut, _SIZE, on_gpu=device_id is not None)

    pipeline = decode()
    pipeline.build()
    return pipeline


class DaliDecoder:
    """Decodes batches with DALI and says which images it refuses.

    A pipeline is dead after its first error, so a failing batch is repeated image by image, each
    refused one costing a new pipeline (5 ms).
    """

    def __init__(self, build: Callable[[], Any] = build_pipeline) -> None:
        self._build = build
        self._pipeline: Any = None

    def _run(self, images: Sequence[np.ndarray]) -> str:
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input("encoded", list(images))
        self._pipeline.feed_input("cut", [_CUT] * len(images))
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

        Raises:
            RuntimeError: it refuses a sound picture too, so that the fault is its own.
        """
        reasons = []
        for first in range(0, len(images), BATCH):
            reasons += self._check(images[first : first + BATCH])
        if any(reasons) and (fault := self._run([SOUND])):
            raise RuntimeError(f"DALI decodes nothing any more: {fault}")
        return reasons

    def _check(self, images: Sequence[np.ndarray]) -> list[str]:
        refused = self._run(images)
        if not refused or len(images) == 1:
            return [refused] * len(images)
        return [self._run([data]) for data in images]


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

"""Encoded images in, square crops out.

On a GPU DALI does all of it. On a CPU DALI decodes, and our own operator cuts and resizes: it takes
a fourteenth of the time. Without the compiled extension DALI resizes there too.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipfast.data.check import Limits, check_images
from clipfast.data.encoded import EncodedBatch
from clipfast.data.judge import DaliDecoder, build_pipeline
from clipfast.data.resizing import Resizer
from clipfast.ops.resize import is_compiled

_QUEUE_DEPTH = 2
# Looking for what cannot be decoded: a shape that the index would refuse is no reason.
_ANY_SIZE = Limits(min_side=1, max_aspect=1e9, max_pixels=10**12)


class NamesBroken(Protocol):
    """What can name a sample: a ``ShardReader``, or whatever else the files come from."""

    def broken(self, shard: int, row: int, reason: str) -> Exception:
        """The error for a sample that does not decode: which one, why, and what to do.

        Args:
            shard: its shard.
            row: its row in that shard.
            reason: why.
        """
        ...


class Settles(Protocol):
    """What puts something in the place of broken samples, as ``Substitutes`` does."""

    def settle(self, batch: EncodedBatch) -> EncodedBatch:
        """The batch without its faults.

        Args:
            batch: the next of the stream.
        """
        ...


@dataclass(frozen=True)
class DecodedBatch:
    """A decoded batch and where it came from.

    Attributes:
        crops: ``[B, S, S, 3]`` uint8 on the loader's device.
        encoded: its source: tokens, lengths, request.
    """

    crops: Tensor
    encoded: EncodedBatch


class _Feed:
    """What DALI calls for batches, ahead of the results; StopIteration ends its stream.

    It knows nothing of the pipeline that holds it: in a cycle the two would live, with threads and
    buffers, until Python looks for cycles.

    Attributes:
        in_flight: batches that the pipeline was given and whose results are not out yet.
        failure: what the source raised.
    """

    def __init__(
        self,
        source: Iterator[EncodedBatch],
        settle: Callable[[EncodedBatch], EncodedBatch] | None,
    ) -> None:
        self._source = source
        self._settle = settle
        self._again: deque[EncodedBatch] = deque()
        self.in_flight: deque[EncodedBatch] = deque()
        self.failure: Exception | None = None

    def images(self) -> list[np.ndarray]:
        """The next batch, where DALI only decodes."""
        return self._next().images

    def images_and_cuts(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The next batch, where DALI cuts and resizes too."""
        encoded = self._next()
        return encoded.images, list(encoded.cuts)

    def _next(self) -> EncodedBatch:
        try:
            encoded = self._again.popleft() if self._again else next(self._source)
            if self._settle is not None:
                encoded = self._settle(encoded)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise
        self.in_flight.append(encoded)
        return encoded

    def give_again(self, batches: Iterable[EncodedBatch]) -> None:
        """Begin anew with batches whose results never came."""
        self.in_flight.clear()
        self._again.extendleft(reversed(list(batches)))

    def close(self) -> None:
        """Forget everything: DALI's graph, which holds this object, lies in cycles of its own."""
        self._source, self._settle = iter(()), None
        self._again.clear()
        self.in_flight.clear()
        self.failure = None


class Decoder:
    """Decodes, crops and resizes a stream of encoded batches.

    The crop is the paper's: a random square of the resized image, here cut from the full-size image
    and resized once with bicubic interpolation and antialiasing. Greyscale, CMYK, palette and
    16-bit images become RGB; orientation tags apply. On a GPU decoding runs on its JPEG hardware
    where there is any, and pixels never return to the host.

    Args:
        source: batches in order.
        reader: names a broken sample.
        batch_size: the largest batch that comes.
        image_size: S, pixels.
        device: where images are wanted.
        threads: CPU threads that decode.
        substitutes: replace broken samples; without them one is an error.

    Raises:
        ImportError: DALI is not installed.
    """

    def __init__(
        self,
        source: Iterator[EncodedBatch],
        reader: NamesBroken,
        batch_size: int,
        image_size: int,
        device: torch.device,
        threads: int,
        substitutes: Settles | None = None,
    ) -> None:
        self._reader = reader
        self._device = device
        self._threads = threads
        self._is_tolerant = substitutes is not None
        self._feed = _Feed(source, substitutes.settle if substitutes else None)
        # The executor may still read the bytes of a batch whose result has just been handed out.
        self._finished: deque[EncodedBatch] = deque(maxlen=_QUEUE_DEPTH)
        is_ours = device.type == "cpu" and is_compiled()
        self._resizer = Resizer(image_size, threads) if is_ours else None
        self._build = partial(
            _build_pipeline, self._feed, batch_size, image_size, device, threads, is_ours
        )
        self._pipeline: Any = self._build()

    def __iter__(self) -> "Decoder":
        return self

    def __next__(self) -> DecodedBatch:
        if self._feed.failure is not None:
            raise self._feed.failure
        if self._pipeline is None:
            raise StopIteration
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        while (outputs := self._run(stream)) is None:
            pass
        encoded = self._feed.in_flight.popleft()
        if self._resizer is not None:
            crops = self._resizer(outputs[0], encoded.cuts)
        else:
            crops = self._to_torch(outputs[0], stream)
        self._pipeline.release_outputs()
        self._finished.append(encoded)
        return DecodedBatch(crops, encoded)

    def _run(self, stream: torch.cuda.Stream | None) -> Any:
        """DALI's outputs; None where a broken sample was met and all begins anew without it."""
        try:
            self._pipeline.schedule_run()
            return self._pipeline.share_outputs(cuda_stream=stream)
        except StopIteration:
            raise
        except Exception as error:
            # An error that is its own cause would keep the pipeline until Python looks for cycles.
            if error is self._feed.failure:
                raise
            if self._feed.failure is not None:
                raise self._feed.failure from error
            said = str(error)
        # Out of the block above nothing holds the pipeline, which is dead, any more.
        self._pipeline = None
        self._begin_anew(said)
        return None

    def close(self) -> None:
        """End DALI's threads and give its memory back; what is under way is abandoned."""
        # The pipeline goes with its last reference, before the bytes that it may still read.
        self._pipeline = None
        self._feed.close()
        self._finished.clear()
        if self._resizer is not None:
            self._resizer.close()

    def _to_torch(self, output: Any, stream: torch.cuda.Stream | None) -> Tensor:
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray, to_torch_type

        images = torch.empty(
            output.as_tensor().shape(), dtype=to_torch_type[output.dtype], device=self._device
        )
        feed_ndarray(output.as_tensor(), images, cuda_stream=stream)
        return images

    def _begin_anew(self, said: str) -> None:
        """Find the samples that broke the pipeline, whose error names no file, and go on without.

        Each is decoded by itself, so that what is broken does not depend on its batch.

        Args:
            said: DALI's error.
        """
        on_gpu = self._device.type == "cuda"
        device_id = (self._device.index or 0) if on_gpu else None
        judge = DaliDecoder(partial(build_pipeline, device_id, self._threads))
        batches = []
        for batch in self._feed.in_flight:
            reasons = judge.check(batch.images)
            faults = {
                i: check_images([batch.images[i].tobytes()], _ANY_SIZE, dali=False)[0] or reason
                for i, reason in enumerate(reasons)
                if reason
            }
            batches.append(replace(batch, faults=faults))
        broken = [(batch, i) for batch in batches for i in batch.faults]
        if not broken:
            raise RuntimeError(
                f"DALI failed, though every image of the batch decodes alone: {said}"
            )
        if not self._is_tolerant:
            batch, i = broken[0]
            samples = batch.request.samples
            raise self._reader.broken(int(samples.shard[i]), int(samples.row[i]), batch.faults[i])
        self._feed.give_again(batches)
        self._pipeline = self._build()


def decoded(encoded: Any, on_gpu: bool = False) -> Any:
    """The operator of DALI's graph that decodes.

    Args:
        encoded: DALI node, uint8 ``[N]``, as ``clipfast.data.prepare`` gives it.
        on_gpu: decode on the GPU, where it can.

    Returns:
        DALI node, ``[H, W, 3]`` uint8, RGB, upright.
    """
    from nvidia.dali import fn, types

    return fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)


def resized_crops(encoded: Any, cut: Any, image_size: int, on_gpu: bool = False) -> Any:
    """The operators of DALI's graph, from a file to its crop.

    Args:
        encoded: DALI node, uint8 ``[N]``, as ``clipfast.data.prepare`` gives it.
        cut: DALI node, float32 ``[5]``; see ``clipfast.data.encoded.EncodedBatch.cuts``.
        image_size: S, pixels.
        on_gpu: decode on the GPU, where it can.

    Returns:
        DALI node, ``[S, S, 3]`` uint8.
    """
    from nvidia.dali import fn, types

    images = decoded(encoded, on_gpu)
    size = fn.cast(images.shape(), dtype=types.FLOAT)[0:2] * cut[3:5]
    side = fn.reductions.min(size, axes=[0]) * cut[0]
    start = (size - side) * cut[1:3]
    return fn.resize(
        images,
        size=[image_size, image_size],
        roi_start=start,
        roi_end=start + side,
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )


def _build_pipeline(
    feed: _Feed,
    batch_size: int,
    image_size: int,
    device: torch.device,
    threads: int,
    only_decodes: bool,
) -> Any:
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise ImportError(
            "decoding needs NVIDIA DALI: pip install 'clipfast[train]' "
            "(CUDA 12: 'clipfast[train-cuda12]')"
        ) from error

    on_gpu = device.type == "cuda"

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device.index or 0 if on_gpu else None,
        prefetch_queue_depth=_QUEUE_DEPTH,
        exec_dynamic=True,
    )
    def pipeline() -> Any:
        if only_decodes:
            return decoded(
                fn.external_source(
                    source=feed.images, batch=True, no_copy=True, dtype=types.UINT8, ndim=1
                )
            )
        encoded, cut = fn.external_source(
            source=feed.images_and_cuts,
            num_outputs=2,
            batch=True,
            no_copy=True,
            dtype=[types.UINT8, types.FLOAT],
            ndim=[1, 1],
        )
        return resized_crops(encoded, cut, image_size, on_gpu)

    built = pipeline()
    built.build()
    return built

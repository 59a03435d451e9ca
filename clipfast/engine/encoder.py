"""The model of a run as evaluations see it: encoded by all ranks together."""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.data import EvalLoader, ShardReader
from clipfast.data.fields import Fields
from clipfast.data.order import EpochOrder, SampleRefs
from clipfast.data.reasons import reasons_of
from clipfast.data.rgb import open_rgb
from clipfast.data.shards import counts, expand
from clipfast.engine.plan import RunPlan
from clipfast.engine.setencoder import RunSetEncoder
from clipfast.eval import Pairs
from clipfast.tokenizer import tokenize_with_lengths

if TYPE_CHECKING:
    from PIL.Image import Image


class RunData:
    """The evaluation data of a run, before there is a model.

    Args:
        plan: of the run.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self._patterns = plan.config.data.eval_sources

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.plan.process.world_size

    def count(self, source: str) -> int:
        """Pairs of a set, at most ``--data.eval-limit``.

        Raises:
            ValueError: a shard or its index is unfit, or no sample is left.
        """
        shards = expand(self._pattern(source))
        pairs = int(counts(shards, fields=self.plan.config.data.fields).sum())
        if not pairs:
            raise ValueError(reasons_of(shards).after(f"{len(shards)} shard(s) hold no sample"))
        return min(pairs, self.plan.config.data.eval_limit)

    def _pattern(self, source: str) -> str:
        return self._patterns.get(source, source)


class RunEncoder(RunData):
    """A run's model and data; every method is a collective.

    Args:
        engine: the DeepSpeed engine, in evaluation mode.
        plan: of the run.
        between: called before each batch.
    """

    def __init__(
        self, engine: Any, plan: RunPlan, between: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(plan)
        self._engine = engine
        self._between = between

    @property
    def device(self) -> torch.device:
        """Of the features."""
        return self.plan.process.device

    def sets(self) -> RunSetEncoder:
        """Encodes labelled and captioned sets."""
        return RunSetEncoder(self._engine, self.plan, self._between)

    @torch.no_grad()
    def pairs(self, source: str) -> Pairs:
        """All pairs of some shards: each rank encodes one contiguous part.

        Args:
            source: a set's name, or a pattern of shards.
        """
        loader = self._loader(self._pattern(source))
        sizes = self._sizes(len(loader))
        images, texts, content, _ = self._encode(loader, sizes)
        first = sum(sizes[: self.plan.process.rank])
        image_ids, caption_ids = self.gather(content.to(self.device)).cpu().unbind(1)
        image, caption = _openers(self._pattern(source), sum(sizes), self.plan.config.data.fields)
        return Pairs(
            source=source,
            image_features=self.gather(images),
            text_features=self.gather(texts),
            mine=slice(first, first + len(loader)),
            image_ids=image_ids,
            caption_ids=caption_ids,
            image=image,
            caption=caption,
        )

    @torch.no_grad()
    def features(self, patterns: Sequence[str]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Features of all pairs of some shards, and what the loss takes beside them.

        Args:
            patterns: of shards.

        Returns:
            Image features and text features ``[N, D]`` float32, the same on every rank; the logit
            scale and the objective's scalars.
        """
        loader = self._loader(patterns)
        images, texts, _, scalars = self._encode(loader, self._sizes(len(loader)))
        return self.gather(images), self.gather(texts), scalars

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Image features ``[B, D]`` float32 of pixels ``[B, 3, S, S]``."""
        self._between()
        pixels = images.to(self.device, self.plan.dtype)
        return self._engine(images=pixels)[0].float()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Text features ``[N, D]`` float32 of some captions, in batches as pairs are."""
        size = self.plan.config.data.eval_batch_size
        features = []
        for start in range(0, len(captions), size):
            self._between()
            tokens, lengths = tokenize_with_lengths(
                captions[start : start + size], self.plan.architecture.text.context_length
            )
            encoded = self._engine(tokens=tokens.to(self.device), lengths=lengths)[1]
            features.append(encoded.float())
        return torch.cat(features)

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows in rank order; blocks may differ in length.

        Args:
            rows: ``[n, ...]``.
        """
        if self.world_size == 1:
            return rows
        sizes = self._sizes(len(rows))
        longest = max(sizes)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        blocks = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(blocks, padded)
        return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])

    def _sizes(self, size: int) -> list[int]:
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        sizes[self.plan.process.rank] = size
        dist.all_reduce(sizes)
        return sizes.tolist()

    def _loader(self, patterns: str | Sequence[str]) -> EvalLoader:
        data, process = self.plan.config.data, self.plan.process
        return EvalLoader(
            patterns,
            self.plan.architecture.vision.image_size,
            data.eval_batch_size,
            rank=process.rank,
            world_size=process.world_size,
            limit=data.eval_limit,
            device=process.device,
            dtype=self.plan.dtype,
            threads=self.plan.decode_threads,
            fields=data.fields,
        )

    def _encode(
        self, loader: EvalLoader, sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Encode this rank's pairs, and pass on the ids of their content and the model's scalars.
        Every rank runs the same number of forwards, since under ZeRO-3 each one gathers parameters
        from all ranks; one with a batch less repeats its last."""
        images, texts, content = [], [], []
        scalars: list[Tensor] = []
        batch: Any = None
        with closing(iter(loader)) as batches:
            for _ in range(math.ceil(max(sizes) / loader.batch_size)):
                self._between()
                fresh = next(batches, None)
                batch = fresh or batch
                image_features, text_features, *scalars = self._engine(
                    batch.images, batch.tokens, lengths=batch.lengths
                )
                if fresh is not None:
                    images.append(image_features.float())
                    texts.append(text_features.float())
                    content.append(fresh.content)
        return torch.cat(images), torch.cat(texts), torch.cat(content), scalars


def _openers(
    pattern: str, pairs: int, fields: Fields
) -> tuple[Callable[[int], "Image"], Callable[[int], str]]:
    """Functions that read the i-th picture and caption, and leave no shard open."""

    @functools.cache
    def reader_and_places() -> tuple[ShardReader, SampleRefs]:
        shards = expand(pattern)
        order = EpochOrder(counts(shards, fields=fields), shuffle=False)
        return ShardReader(shards, fields=fields), order.locate(0, 0, pairs)

    def image(i: int) -> "Image":
        reader, places = reader_and_places()
        with closing(reader):
            return open_rgb(reader.image(int(places.shard[i]), int(places.row[i])))

    def caption(i: int) -> str:
        reader, places = reader_and_places()
        with closing(reader):
            return reader.caption(int(places.shard[i]), int(places.row[i]))

    return image, caption

"""The model of a run as evaluations see it: encoded by all ranks together."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.data import EvalLoader
from clipfast.data.catalogue import look_up, together_for
from clipfast.data.content import caption_id
from clipfast.data.pairs import EvalPairLoader
from clipfast.data.reasons import reasons_of
from clipfast.data.rgb import open_rgb
from clipfast.data.shards import expand
from clipfast.data.sources import find_sources
from clipfast.data.together import ALONE, Together
from clipfast.engine.agreement import ranks_of
from clipfast.engine.config import DataConfig
from clipfast.engine.plan import RunPlan
from clipfast.engine.setencoder import RunSetEncoder
from clipfast.eval import Pairs
from clipfast.tokenizer import tokenize_with_lengths

if TYPE_CHECKING:
    from PIL.Image import Image


def held(
    data: DataConfig, patterns: str | Sequence[str], name: str, together: Together = ALONE
) -> int:
    """Samples of shards that an evaluation can read. A collective of `together`.

    Args:
        data: of the run.
        patterns: of shards.
        name: of the set, by which tables of captions are told.
        together: ranks of the run.

    Raises:
        ValueError, OSError: a shard, its index or a table of captions is unfit.
    """
    together = together_for(patterns, together)
    known = look_up(
        together.share(partial(find_sources, patterns)),
        data.fields,
        caption_tables=data.captions_in(name),
        caption_cache=data.caption_cache,
        together=together,
    )
    return int(known.kept.counts.sum())


class RunData:
    """The evaluation data of a run, before there is a model.

    Args:
        plan: of the run.
        together: its ranks, where all of them make it and call it alike.
    """

    def __init__(self, plan: RunPlan, together: Together = ALONE) -> None:
        self.plan, self._together = plan, together
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
        data = self.plan.config.data
        pairs = held(data, self._pattern(source), source, self._together)
        if not pairs:
            shards = expand(self._pattern(source))
            raise ValueError(reasons_of(shards).after(f"{len(shards)} shard(s) hold no sample"))
        return min(pairs, data.eval_limit)

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
        """All pairs of some shards: each rank encodes one contiguous part. An image with several
        captions is a pair with each of them.

        Args:
            source: a set's name, or a pattern of shards.
        """
        loader = self._loader(self._pattern(source), source)
        encoded = self._encode(loader, self._sizes(len(loader)))
        sample, texts, content = self._with_more(encoded)
        sizes = self._sizes(len(sample))
        first = sum(sizes[: self.plan.process.rank])
        image_ids, caption_ids = self.gather(content.to(self.device)).cpu().unbind(1)
        counts = torch.tensor([len(each) for each in encoded.every], dtype=torch.int64)
        image, caption = _openers(loader, self.gather(counts.to(self.device)).cpu())
        return Pairs(
            source=source,
            image_features=self.gather(encoded.images[sample]),
            text_features=self.gather(texts),
            mine=slice(first, first + len(sample)),
            image_ids=image_ids,
            caption_ids=caption_ids,
            image=image,
            caption=caption,
        )

    @torch.no_grad()
    def features(
        self, patterns: Sequence[str], name: str = ""
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Features of all pairs of some shards, with the first caption of each image, and what the
        loss takes beside them.

        Args:
            patterns: of shards.
            name: by which tables of captions are told.

        Returns:
            Image features and text features ``[N, D]`` float32, the same on every rank; the logit
            scale and the objective's scalars.
        """
        loader = self._loader(patterns, name)
        encoded = self._encode(loader, self._sizes(len(loader)))
        return self.gather(encoded.images), self.gather(encoded.texts), encoded.scalars

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
                captions[start : start + size], self.plan.architecture.captions.context_length
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

    def _loader(self, patterns: str | Sequence[str], name: str) -> EvalLoader:
        data, process = self.plan.config.data, self.plan.process
        loader = EvalLoader if self.plan.architecture.text else EvalPairLoader
        return loader(
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
            caption_tables=data.captions_in(name),
            caption_cache=data.caption_cache,
            together=ranks_of(self.plan.process),
        )

    def _encode(self, loader: EvalLoader, sizes: Sequence[int]) -> "_Encoded":
        """Encode this rank's images with the first caption of each.

        Every rank runs the same number of forwards, since under ZeRO-3 each one gathers parameters
        from all ranks; one with a batch less repeats its last.
        """
        images, texts, content = [], [], []
        every: list[list[str]] = []
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
                    every += fresh.every
        return _Encoded(torch.cat(images), torch.cat(texts), torch.cat(content), every, scalars)

    def _with_more(self, encoded: "_Encoded") -> tuple[Tensor, Tensor, Tensor]:
        """The pairs of this rank's images with all their captions.

        Every rank runs the same number of forwards, as in `_encode`.

        Returns:
            ``[P]`` int64 on the CPU, the image of each pair, rising; ``[P, D]`` features of the
            captions; ``[P, 2]`` ids of the pairs' content.
        """
        more = [text for texts in encoded.every for text in texts[1:]]
        size = self.plan.config.data.eval_batch_size
        rounds = max(math.ceil(each / size) for each in self._sizes(len(more)))
        found = [encoded.texts]
        for start in range(0, rounds * size, size):
            part = more[start : start + size]
            # What a rank has encoded before, where others have captions left.
            features = self.texts(part or encoded.every[0][:1])
            found += [features] if part else []
        texts = torch.cat(found)
        counts = torch.tensor([len(each) for each in encoded.every])
        sample = torch.arange(len(counts)).repeat_interleave(counts)
        is_first = sample.diff(prepend=torch.tensor([-1])) > 0
        # First captions stand in front of all others.
        place = torch.where(is_first, sample, len(counts) + (~is_first).cumsum(0) - 1)
        ids = torch.tensor([caption_id(text) for text in more], dtype=torch.int64)
        captions = torch.cat([encoded.content[:, 1], ids])[place]
        content = torch.stack([encoded.content[sample, 0], captions], 1)
        return sample, texts[place.to(texts.device)], content


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What a rank has encoded.

    Attributes:
        images: ``[n, D]`` float32.
        texts: ``[n, D]`` likewise, of the first caption of each image.
        content: ``[n, 2]`` int64 on the CPU, see ``ImageTextBatch``.
        every: all captions of each image.
        scalars: of the objective.
    """

    images: Tensor
    texts: Tensor
    content: Tensor
    every: list[list[str]]
    scalars: list[Tensor]


def _openers(
    loader: EvalLoader, counts: Tensor
) -> tuple[Callable[[int], "Image"], Callable[[int], str]]:
    """Functions that read the picture and the caption of the i-th pair, and leave no shard open.

    Args:
        loader: of the shards.
        counts: ``[n]`` int64, captions of each image of all ranks.
    """
    reader = loader.reader
    starts = torch.cumsum(counts, 0) - counts

    def place(i: int) -> tuple[int, int, int]:
        sample = int(torch.searchsorted(starts, i, right=True)) - 1
        at = loader.order.locate(0, sample, sample + 1)
        return int(at.shard[0]), int(at.row[0]), i - int(starts[sample])

    def image(i: int) -> "Image":
        shard, row, _ = place(i)
        with closing(reader):
            return open_rgb(reader.image(shard, row))

    def caption(i: int) -> str:
        shard, row, number = place(i)
        with closing(reader):
            return reader.captions(shard, row)[number]

    return image, caption

"""A batch whose micro-batches are made when they are asked for."""

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from clipfast.data.batch import ImageTextBatch
from clipfast.data.encoded import Skipped


class PartedBatch(ImageTextBatch):
    """One rank's share of a global batch, made by micro-batch.

    `parts` is what it is for. Its attributes are those of an ``ImageTextBatch``: all but `epoch`
    and `index` put the whole share together, with the memory that takes.

    Args:
        count: k, the number of micro-batches.
        make: makes the one of a number, the same whenever it is called.
        will_pass: told how often each is going to be made.
        epoch: from 0.
        index: number of the global batch in its epoch.
    """

    _count: int
    _make: Callable[[int], ImageTextBatch]
    _will_pass: Callable[[int | None], None]

    def __init__(
        self,
        count: int,
        make: Callable[[int], ImageTextBatch],
        will_pass: Callable[[int | None], None],
        epoch: int,
        index: int,
    ) -> None:
        own = {"_count": count, "_make": make, "_will_pass": will_pass}
        for name, value in {**own, "epoch": epoch, "index": index, "content": None}.items():
            # The class is frozen.
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"PartedBatch(epoch={self.epoch}, index={self.index})"

    def parts(self, count: int, passes: int | None = None) -> Sequence[ImageTextBatch]:
        """See ``ImageTextBatch.parts``; another number of parts puts the whole share together."""
        if count != self._count:
            return self._whole.parts(count)
        self._will_pass(passes)
        return _Parts(count, self._make)

    @cached_property
    def _whole(self) -> ImageTextBatch:
        parts = [self._make(m) for m in range(self._count)]
        longest = max(part.tokens.shape[1] for part in parts)
        padded = [pad(part.tokens, (0, longest - part.tokens.shape[1])) for part in parts]
        return ImageTextBatch(
            images=torch.cat([part.images for part in parts]),
            tokens=torch.cat(padded),
            lengths=torch.cat([part.lengths for part in parts]),
            epoch=self.epoch,
            index=self.index,
            shard=np.concatenate([part.shard for part in parts]),
            row=np.concatenate([part.row for part in parts]),
            skipped=tuple(itertools.chain.from_iterable(part.skipped for part in parts)),
        )

    @property
    def images(self) -> Tensor:
        return self._whole.images

    @property
    def tokens(self) -> Tensor:
        return self._whole.tokens

    @property
    def lengths(self) -> Tensor:
        return self._whole.lengths

    @property
    def shard(self) -> np.ndarray:
        return self._whole.shard

    @property
    def row(self) -> np.ndarray:
        return self._whole.row

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self._whole.skipped


class _Parts(Sequence[ImageTextBatch]):
    """The micro-batches of a batch; each is made anew when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], ImageTextBatch]) -> None:
        self._numbers = range(count)
        self._make = make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, m: int) -> ImageTextBatch: ...

    @overload
    def __getitem__(self, m: slice) -> Sequence[ImageTextBatch]: ...

    def __getitem__(self, m: int | slice) -> ImageTextBatch | Sequence[ImageTextBatch]:
        if isinstance(m, slice):
            return [self._make(each) for each in self._numbers[m]]
        return self._make(self._numbers[m])

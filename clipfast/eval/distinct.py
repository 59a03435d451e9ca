"""The pictures and captions of a set of pairs, each counted once."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Distinct:
    """What retrieval compares: distinct pictures with distinct captions.

    A picture with five captions is five pairs, and a caption may stand beside many pictures. Each
    is one query and one candidate. A caption is right for a picture where some pair holds both.

    Attributes:
        pictures: ``[P]`` int64, the first pair of each distinct picture, ascending.
        captions: ``[C]`` int64, the first pair of each distinct caption, ascending.
        right: ``[K, 2]`` int64, places in ``pictures`` and ``captions`` of all pairs, each once.
    """

    pictures: Tensor
    captions: Tensor
    right: Tensor

    @classmethod
    def of(cls, image_ids: Tensor, caption_ids: Tensor) -> "Distinct":
        """Find them.

        Args:
            image_ids: ``[N]`` int64 on the CPU, equal for pairs with the same picture.
            caption_ids: ``[N]``, equal for pairs with the same caption.
        """
        pictures, picture = _first_seen(image_ids)
        captions, caption = _first_seen(caption_ids)
        return cls(pictures, captions, torch.stack([picture, caption], 1).unique(dim=0))

    def note(self, pairs: int) -> str:
        """How many there are where that is less than the pairs, such as ", 7 distinct captions"."""
        return "".join(
            f", {len(firsts)} distinct {name}{'s' if len(firsts) > 1 else ''}"
            for name, firsts in (("picture", self.pictures), ("caption", self.captions))
            if len(firsts) < pairs
        )


def _first_seen(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where each distinct id stands first, ascending; and the place of each id in that list."""
    distinct, group = ids.unique(return_inverse=True)
    every = torch.arange(len(ids))
    first = every.new_full((len(distinct),), len(ids)).scatter_reduce(0, group, every, "amin")
    order = first.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return first[order], place[group]

"""Image-text retrieval on sets of pairs, the first evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipfast.eval.distinct import Distinct
from clipfast.eval.evaluation import Encoder, Evaluation, Measured, Pairs, PairSource
from clipfast.eval.gallery import Gallery, retrieval_figure
from clipfast.eval.ranking import RECALL_AT, chance, recalls, right_ranks
from clipfast.eval.registry import EvaluationData, register


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval(Measured):
    """Retrieval over one set of pairs.

    Attributes:
        source: its name.
        pairs: N, number of pairs.
        distinct: what was compared: each picture and each caption once.
        image_to_text: R@1, R@5, R@10.
        text_to_image: R@1, R@5, R@10.
        gallery: what can be drawn of it, its features on the CPU.
    """

    source: str
    pairs: int
    distinct: Distinct
    image_to_text: dict[str, float]
    text_to_image: dict[str, float]
    gallery: Gallery


class RetrievalEvaluation(Evaluation):
    """R@1, R@5 and R@10 in both directions, on every set of ``--data.eval``.

    Args:
        data: of the run.
    """

    def __init__(self, data: EvaluationData) -> None:
        self.data = data

    def check(self, data: PairSource) -> None:
        """Every set opens and holds a pair per rank at least.

        Raises:
            ValueError: a shard or its index is unfit, or there are fewer pairs than ranks.
        """
        for source in self.data.sources:
            try:
                pairs = data.count(source)
            except ValueError as error:
                raise ValueError(f"--data.eval {source}: {error}") from error
            if pairs < data.world_size:
                raise ValueError(
                    f"--data.eval {source} holds {pairs} pairs, less than the {data.world_size} "
                    "ranks that would encode them: add pairs, or leave it out"
                )

    def run(self, encoder: Encoder) -> list[Retrieval]:
        """Encode every set and rank its pairs; each rank ranks those that it encoded."""
        return [self._measure(encoder, encoder.pairs(source)) for source in self.data.sources]

    def summary(self, measured: Sequence[Retrieval]) -> list[str]:
        """Lines of a table, chance beneath each set."""
        return retrieval_table(measured, self.data.trained_on) if measured else []

    def figure(self, measured: Sequence[Retrieval], path: Path) -> bool:
        """Random queries of each set with their five best answers, set beside set."""
        if measured:
            retrieval_figure([entry.gallery for entry in measured], path)
        return bool(measured)

    def _measure(self, encoder: Encoder, pairs: Pairs) -> Retrieval:
        distinct = Distinct.of(pairs.image_ids, pairs.caption_ids)
        images = _Side(distinct.pictures, pairs.image_features)
        texts = _Side(distinct.captions, pairs.text_features)
        sides = [
            _recalls(encoder, pairs.mine, images, texts, distinct.right),
            _recalls(encoder, pairs.mine, texts, images, distinct.right.flip(1)),
        ]
        return Retrieval(
            scalars=_scalars(pairs.source, *sides),
            lines=(_line(pairs, distinct, *sides),),
            source=pairs.source,
            pairs=len(pairs),
            distinct=distinct,
            image_to_text=sides[0],
            text_to_image=sides[1],
            gallery=_gallery(pairs, distinct, images, texts, *sides),
        )


class _Side:
    """The distinct pictures, or captions, with their features.

    Args:
        firsts: ``[M]`` int64, the first pair of each.
        features: ``[N, D]`` of all pairs.
    """

    def __init__(self, firsts: Tensor, features: Tensor) -> None:
        self.firsts = firsts
        self.features = features[firsts.to(features.device)]

    def part(self, pairs: slice) -> tuple[int, int]:
        """The places whose first pair is among some pairs; parts of ranks follow each other."""
        start, stop = torch.searchsorted(self.firsts, torch.tensor([pairs.start, pairs.stop]))
        return int(start), int(stop)


def _recalls(
    encoder: Encoder, pairs: slice, queries: _Side, candidates: _Side, right: Tensor
) -> dict[str, float]:
    """Each rank ranks the queries that stand first among its pairs."""
    start, stop = queries.part(pairs)
    mine = right[(right[:, 0] >= start) & (right[:, 0] < stop)] - torch.tensor([start, 0])
    ranks = right_ranks(queries.features[start:stop], candidates.features, mine)
    return recalls(encoder.gather(ranks[:, None])[:, 0])


def _scalars(
    source: str, image_to_text: dict[str, float], text_to_image: dict[str, float]
) -> dict[str, float]:
    return {
        f"eval/{source}/{direction}/{name}": value
        for direction, table in (
            ("image_to_text", image_to_text),
            ("text_to_image", text_to_image),
        )
        for name, value in table.items()
    }


def _line(
    pairs: Pairs,
    distinct: Distinct,
    image_to_text: dict[str, float],
    text_to_image: dict[str, float],
) -> str:
    sides = "; ".join(
        f"{name} " + " ".join(f"{key} {value:.3f}" for key, value in table.items())
        for name, table in (("image-to-text", image_to_text), ("text-to-image", text_to_image))
    )
    return f"{pairs.source} ({len(pairs)} pairs{distinct.note(len(pairs))}): {sides}"


def _gallery(
    pairs: Pairs,
    distinct: Distinct,
    images: _Side,
    texts: _Side,
    image_to_text: dict[str, float],
    text_to_image: dict[str, float],
) -> Gallery:
    title = (
        f"{pairs.source}: image-to-text R@1 {image_to_text['R@1']:.2f}, "
        f"text-to-image R@1 {text_to_image['R@1']:.2f}\n"
        "random queries and their five best; green: right"
    )
    right = set(map(tuple, distinct.right.tolist()))
    return Gallery(
        title=title,
        image_features=images.features.cpu(),
        text_features=texts.features.cpu(),
        image=lambda i: pairs.image(int(images.firsts[i])),
        caption=lambda i: pairs.caption(int(texts.firsts[i])),
        is_right=lambda picture, caption: (picture, caption) in right,
    )


def retrieval_table(results: Sequence[Retrieval], trained_on: Sequence[str]) -> list[str]:
    """Lines of a table for the end of a run, chance beneath each set.

    Args:
        results: one entry per set.
        trained_on: names of those that are the training data, marked as such.
    """
    names = [f"R@{k}" for k in RECALL_AT]
    labels = [f"{r.source}{' (trained on)' if r.source in trained_on else ''}" for r in results]
    chance_labels = [f"  chance ({r.pairs} pairs{r.distinct.note(r.pairs)})" for r in results]
    width = max(map(len, [*labels, *chance_labels]), default=0) + 2
    header = "".join(f"{name:>8}" for name in names)
    lines = [
        f"{'':{width}}{'image to text':>24}  {'text to image':>24}",
        f"{'':{width}}{header}  {header}",
    ]
    for label, chance_label, result in zip(labels, chance_labels, results, strict=True):
        sides = (result.image_to_text, result.text_to_image)
        cells = ["".join(f"{side[name]:8.3f}" for name in names) for side in sides]
        lines.append(f"{label:{width}}{'  '.join(cells)}")
        cells = ["".join(f"{side[name]:8.4f}" for name in names) for side in _chance(result)]
        lines.append(f"{chance_label:{width}}{'  '.join(cells)}")
    return lines


def _chance(result: Retrieval) -> tuple[dict[str, float], dict[str, float]]:
    """Recalls of a model that knows nothing, in both directions."""
    right = result.distinct.right
    return (
        chance(right, len(result.distinct.captions)),
        chance(right.flip(1), len(result.distinct.pictures)),
    )


register("retrieval", RetrievalEvaluation)

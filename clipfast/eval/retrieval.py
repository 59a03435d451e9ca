"""Image-text retrieval on sets of pairs, the first evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clipfast.eval.evaluation import Encoder, Evaluation, Measured, Pairs, PairSource
from clipfast.eval.gallery import Gallery, retrieval_figure
from clipfast.eval.ranking import RECALL_AT, pair_ranks, recalls
from clipfast.eval.registry import EvaluationData, register


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval(Measured):
    """Retrieval over one set of pairs.

    Attributes:
        source: the pattern that named it.
        pairs: N, number of pairs.
        image_to_text: R@1, R@5, R@10.
        text_to_image: R@1, R@5, R@10.
        gallery: what can be drawn of it, its features on the CPU.
    """

    source: str
    pairs: int
    image_to_text: dict[str, float]
    text_to_image: dict[str, float]
    gallery: Gallery


class RetrievalEvaluation(Evaluation):
    """R@1, R@5 and R@10 in both directions, on every pattern of ``--data.eval``.

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
        sides = [
            _recalls(encoder, pairs, queries, candidates)
            for queries, candidates in (
                (pairs.image_features, pairs.text_features),
                (pairs.text_features, pairs.image_features),
            )
        ]
        return Retrieval(
            scalars=_scalars(pairs.source, *sides),
            lines=(_line(pairs, *sides),),
            source=pairs.source,
            pairs=len(pairs),
            image_to_text=sides[0],
            text_to_image=sides[1],
            gallery=_gallery(pairs, *sides),
        )


def _recalls(
    encoder: Encoder, pairs: Pairs, queries: Tensor, candidates: Tensor
) -> dict[str, float]:
    mine = pair_ranks(queries[pairs.mine], candidates, pairs.mine.start)
    return recalls(encoder.gather(mine[:, None])[:, 0])


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


def _line(pairs: Pairs, image_to_text: dict[str, float], text_to_image: dict[str, float]) -> str:
    sides = "; ".join(
        f"{name} " + " ".join(f"{key} {value:.3f}" for key, value in table.items())
        for name, table in (("image-to-text", image_to_text), ("text-to-image", text_to_image))
    )
    return f"{pairs.source} ({len(pairs)} pairs): {sides}"


def _gallery(
    pairs: Pairs, image_to_text: dict[str, float], text_to_image: dict[str, float]
) -> Gallery:
    title = (
        f"{pairs.source}: image-to-text R@1 {image_to_text['R@1']:.2f}, "
        f"text-to-image R@1 {text_to_image['R@1']:.2f}\n"
        "random queries and their five best; green: the right one"
    )
    features = (pairs.image_features.cpu(), pairs.text_features.cpu())
    return Gallery(title, *features, pairs.image, pairs.caption)


def retrieval_table(results: Sequence[Retrieval], trained_on: Sequence[str]) -> list[str]:
    """Lines of a table for the end of a run, chance beneath each set.

    Args:
        results: one entry per set.
        trained_on: the patterns of the training data, marked as such.
    """
    names = [f"R@{k}" for k in RECALL_AT]
    labels = [f"{r.source}{' (trained on)' if r.source in trained_on else ''}" for r in results]
    width = max(map(len, labels), default=0) + 2
    header = "".join(f"{name:>8}" for name in names)
    lines = [
        f"{'':{width}}{'image to text':>24}  {'text to image':>24}",
        f"{'':{width}}{header}  {header}",
    ]
    for label, result in zip(labels, results, strict=True):
        sides = (result.image_to_text, result.text_to_image)
        cells = ["".join(f"{side[name]:8.3f}" for name in names) for side in sides]
        lines.append(f"{label:{width}}{'  '.join(cells)}")
        chance = "".join(f"{min(1.0, k / result.pairs):8.4f}" for k in RECALL_AT)
        lines.append(f"{f'  chance ({result.pairs} pairs)':{width}}{chance}  {chance}")
    return lines


register("retrieval", RetrievalEvaluation)

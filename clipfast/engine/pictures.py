"""The pictures a run leaves: its own data and features, drawn by ``clipfast.eval.figures``."""

import io
import json
from pathlib import Path

from clipfast.data import ShardReader
from clipfast.data.order import EpochOrder
from clipfast.data.shards import counts, expand
from clipfast.engine.evaluate import Retrieval
from clipfast.eval.figures import Gallery, curves_figure, retrieval_figure


def write_figures(run: Path, retrieval: list[Retrieval], folder: Path) -> list[Path]:
    """Draw ``curves.png`` of a run's metrics and ``retrieval.png`` of its last evaluation.

    Args:
        run: the run's folder, with ``metrics.jsonl``.
        retrieval: the last evaluation; empty draws the curves alone.
        folder: where the pictures go.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    written = [folder / "curves.png"]
    curves_figure(rows, written[0])
    if retrieval:
        written.insert(0, folder / "retrieval.png")
        retrieval_figure([_gallery(result) for result in retrieval], written[0])
    return written


def _gallery(result: Retrieval) -> Gallery:
    from PIL import Image

    shards = expand(result.source)
    reader = ShardReader(shards)
    places = EpochOrder(counts(shards), shuffle=False).locate(0, 0, result.pairs)

    def image(i: int) -> Image.Image:
        data = reader.image(int(places.shard[i]), int(places.row[i]))
        return Image.open(io.BytesIO(data)).convert("RGB")

    def caption(i: int) -> str:
        return reader.caption(int(places.shard[i]), int(places.row[i]))

    title = (
        f"{result.source}: image-to-text R@1 {result.image_to_text['R@1']:.2f}, "
        f"text-to-image R@1 {result.text_to_image['R@1']:.2f}\n"
        "random queries and their five best; green: the right one"
    )
    return Gallery(title, result.image_features, result.text_features, image, caption)

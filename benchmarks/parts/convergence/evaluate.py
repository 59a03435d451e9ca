"""Retrieval of a file of weights, by clipfast's evaluation and by OpenCLIP's own code.

A figure of a training is always the first one. The second encodes with OpenCLIP's model, transform
and tokenizer, ranks with its ``get_clip_metrics``, and shows that the first is right.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parts.convergence.settings import GALLERIES, model_file, recipe
from benchmarks.peers import import_open_clip
from clipfast.data import EvalLoader, ShardReader
from clipfast.data.order import EpochOrder
from clipfast.data.rgb import open_rgb
from clipfast.data.shards import counts, expand
from clipfast.eval.distinct import Distinct
from clipfast.eval.ranking import recalls, right_ranks
from clipfast.models import create_model, load_weights
from clipfast.tokenizer import CONTEXT_LENGTH

DIRECTIONS = ("image_to_text", "text_to_image")
_BATCH = 256


@torch.no_grad()
def recalls_of(weights: Path, context_length: int = CONTEXT_LENGTH) -> dict[str, float]:
    """Every recall of both galleries.

    Args:
        weights: Of the demo's model, clipfast's or OpenCLIP's.
        context_length: Of the model in the file.

    Returns:
        ``sample/noto/image_to_text/R@1`` and so on, 12 in all.
    """
    options = recipe().model
    model = create_model(options.name, activation=options.activation, context_length=context_length)
    load_weights(model, weights, activation=options.activation)
    model.eval()
    found = {}
    for gallery in GALLERIES:
        loader = EvalLoader(gallery, model.config.vision.image_size, _BATCH)
        parts = []
        for batch in loader:
            images, texts, _ = model(batch.images, batch.tokens, lengths=batch.lengths)
            parts.append((images, texts, batch.content))
        images, texts, content = (torch.cat(part) for part in zip(*parts, strict=True))
        distinct = Distinct.of(*content.cpu().unbind(1))
        images, texts = images[distinct.pictures], texts[distinct.captions]
        ranks = {
            "image_to_text": right_ranks(images, texts, distinct.right),
            "text_to_image": right_ranks(texts, images, distinct.right.flip(1)),
        }
        for direction in DIRECTIONS:
            for name, value in recalls(ranks[direction]).items():
                found[f"{gallery}/{direction}/{name}"] = value
    return found


@torch.no_grad()
def recalls_by_open_clip(weights: Path, context_length: int = CONTEXT_LENGTH) -> dict[str, float]:
    """The same with nothing of clipfast's but the reading of shards.

    OpenCLIP counts a picture's own caption alone as right, and every pair as one candidate, also
    where two pairs have the same content.
    """
    open_clip = import_open_clip()
    name = recipe().model.name
    with tempfile.TemporaryDirectory() as folder:
        open_clip.add_model_config(model_file(Path(folder)))
    model = open_clip.create_model(name, output_dict=True, force_context_length=context_length)
    model.load_state_dict(_state_of(weights))
    model.eval()
    transform = open_clip.image_transform(model.visual.image_size, is_train=False)
    tokenize = open_clip.get_tokenizer(name, context_length=context_length)
    found = {}
    for gallery in GALLERIES:
        pictures, captions = _read(gallery)
        images, texts = [], []
        for start in range(0, len(captions), _BATCH):
            part = slice(start, start + _BATCH)
            pixels = torch.stack([transform(picture) for picture in pictures[part]])
            images.append(model.encode_image(pixels, normalize=True))
            texts.append(model.encode_text(tokenize(captions[part]), normalize=True))
        metrics = _clip_metrics(torch.cat(images), torch.cat(texts))
        for direction in DIRECTIONS:
            for count in (1, 5, 10):
                found[f"{gallery}/{direction}/R@{count}"] = metrics[f"{direction}_R@{count}"]
    return found


def _clip_metrics(images: Tensor, texts: Tensor) -> dict[str, float]:
    import_open_clip()
    from open_clip_train.train import get_clip_metrics

    metrics = get_clip_metrics(images, texts, torch.ones(()))
    return {name: float(value) for name, value in metrics.items()}


def _state_of(weights: Path) -> dict[str, Tensor]:
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(weights)
    return torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]


def _read(gallery: str) -> tuple[list, list[str]]:
    shards = expand(gallery)
    order = EpochOrder(counts(shards), shuffle=False)
    places = order.locate(0, 0, len(order))
    reader = ShardReader(shards)
    pairs = [
        (open_rgb(reader.image(int(shard), int(row))), reader.caption(int(shard), int(row)))
        for shard, row in zip(places.shard, places.row, strict=True)
    ]
    reader.close()
    return [picture for picture, _ in pairs], [caption for _, caption in pairs]

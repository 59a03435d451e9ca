"""Check both sides against each other, then time classifiers and images in alternation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.parts.common.harness import CheckFailed, Row, measure_together
from benchmarks.parts.zeroshot.peer import BATCH, Peer, peer_name
from benchmarks.parts.zeroshot.problem import Problem
from clipfast.eval.encoding import ImageEncoder, Resize
from clipfast.eval.zeroshot import build_classifier
from clipfast.eval.zeroshot.answers import answers
from clipfast.eval.zeroshot.metrics import mean_per_class_recall
from clipfast.preprocessing import Preprocessing

POINT = 5e-4  # 0.05 point of accuracy
# A resize that rounds otherwise moves single images over a border.
EXACT_POINTS = 5e-3
CLASSIFIER = 1e-5
# Cosines closer than this are a tie of float32.
TIE = 1e-5


@dataclass(frozen=True, eq=False)
class Said:
    """What one side says.

    Attributes:
        predicted: ``[N]``.
        acc1: share of images.
        recall: mean over classes.
    """

    predicted: Tensor
    acc1: float
    recall: float


def check(ours: Said, theirs: Said, scores: Tensor, *, points: float, is_same: bool) -> int:
    """Both are as accurate; with the same pixels both say the same of every image but ties.

    Args:
        ours: clipfast's.
        theirs: CLIP_benchmark's.
        scores: its logits ``[N, C]``, 100 times the cosines.
        points: by how much accuracies may differ, as a share.
        is_same: whether both saw the same pixels.

    Returns:
        Images on which both differ.

    Raises:
        CheckFailed: says which figures differ.
    """
    differ = (ours.predicted != theirs.predicted).nonzero()[:, 0]
    if abs(ours.acc1 - theirs.acc1) > points + 1e-9:
        raise CheckFailed(f"accuracies {ours.acc1:.4%} and {theirs.acc1:.4%}")
    if is_same:
        rows = scores[differ]
        gaps = rows.max(1).values - rows.gather(1, ours.predicted[differ, None])[:, 0]
        if len(gaps) and gaps.max() > 100 * TIE:
            raise CheckFailed(f"{len(differ)} images are said to be of other classes")
        if not len(differ) and abs(ours.recall - theirs.recall) > 1e-9:
            raise CheckFailed(f"mean recalls {ours.recall} and {theirs.recall}")
    return len(differ)


def measure(
    problem: Problem, device: str, runs: int, threads: int, workers: Sequence[int]
) -> list[Row]:
    """Rows of the classifier, and rows of the images.

    Args:
        problem: what is classified.
        device: where both models compute.
        runs: timed runs of each.
        threads: of torch.
        workers: of CLIP_benchmark's DataLoader; a row for each number.

    Raises:
        CheckFailed: see ``check``; or the classifiers differ.
    """
    peer, images = Peer(problem, device), problem.images
    what = f"{images.name}, {problem.model}, weights {problem.weights}"
    theirs = peer.classifier()
    scores, labels = peer.logits(theirs, workers[0])
    told = peer.metrics(scores, labels)
    said = Said(scores.argmax(1), told["acc1"], told["mean_per_class_recall"])
    sizes = {"classes": len(images.classnames), "prompts": len(images.templates)}
    common = {
        "model": problem.model,
        "weights": problem.weights,
        "threads": threads,
        "dtype": "fp32",
        "memory": False,
        "device": device,
        **sizes,
    }
    resizes: dict[str, Resize] = {"clipfast": "exact", "clipfast, as Pillow": "pillow"}
    encoders = {name: encoder_of(problem, device, resize) for name, resize in resizes.items()}
    first = encoders["clipfast"]
    ours = build_classifier(first, images.classnames, images.templates)
    apart = float((ours - theirs.T.cpu()).abs().max())

    def check_classifier() -> None:
        if apart > CLASSIFIER:
            raise CheckFailed(f"the classifiers differ by {apart:.1e}")

    texts = len(images.classnames) * len(images.templates)
    rows = measure_together(
        {
            "clipfast": lambda: build_classifier(first, images.classnames, images.templates),
            peer_name(): peer.classifier,
        },
        check=check_classifier,
        warmup=0,
        runs=runs,
        items=texts,
        case=f"{what}, {texts:,} texts",
        error_classifier=apart,
        **common,
    )
    judged = {name: judge(encoder, problem, ours) for name, encoder in encoders.items()}
    differ: dict[str, int] = {}

    def check_images() -> None:
        for name, one in judged.items():
            is_same = resizes[name] == "pillow"
            points = POINT if is_same else EXACT_POINTS
            differ[name] = check(one, said, scores, points=points, is_same=is_same)

    def encoding(encoder: ImageEncoder) -> Callable[[], Said]:
        return lambda: judge(encoder, problem, ours)

    functions: dict[str, Callable[[], object]] = {
        name: encoding(encoder) for name, encoder in encoders.items()
    }
    for number in workers:
        functions[f"{peer_name()}, {number} workers"] = _classifying(peer, theirs, number)
    found = measure_together(
        functions,
        check=check_images,
        warmup=0,
        runs=runs,
        items=len(images),
        case=f"{what}, {len(images):,} images",
        **common,
    )
    for row in found:
        one = judged.get(row["name"], said)
        row |= {"acc1": one.acc1, "mean_per_class_recall": one.recall}
        row["said_otherwise"] = differ.get(row["name"], 0)
    return rows + found


def _classifying(peer: Peer, classifier: Tensor, workers: int) -> Callable[[], object]:
    return lambda: peer.metrics(*peer.logits(classifier, workers))


def encoder_of(problem: Problem, device: str, resize: Resize) -> ImageEncoder:
    """Ours, with CLIP_benchmark's size of a batch."""
    size = problem.ours.config.vision.image_size
    return ImageEncoder(problem.ours, Preprocessing(size), BATCH, device, resize=resize)


def judge(encoder: ImageEncoder, problem: Problem, classifier: Tensor) -> Said:
    """Encode and judge all images, as the command line does with the set's own prompts.

    Args:
        encoder: of the model.
        problem: what is classified.
        classifier: ``[C, D]``.

    Raises:
        CheckFailed: an image does not decode.
    """
    images = problem.images
    features = encoder.images(images)
    if encoder.unreadable:
        raise CheckFailed(f"{len(encoder.unreadable)} images do not decode")
    labels = torch.from_numpy(images.labels)
    scale = problem.ours.logit_scale.detach().float().exp().item()
    said = answers(F.normalize(features, dim=-1), classifier, labels, scale)
    return Said(
        said.predicted,
        float((said.rank == 0).double().mean()),
        mean_per_class_recall(said.predicted, labels, len(images.classnames)),
    )

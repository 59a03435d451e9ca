"""CLIP_benchmark's functions on OpenCLIP's model, transform and tokenizer."""

from __future__ import annotations

import io
from importlib.metadata import version
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.parts.zeroshot.problem import Problem, image_size
from benchmarks.peers import import_open_clip
from clipfast.eval.sets import LabelledSet

BATCH = 64  # its default


class Pictures(Dataset):
    """A set as CLIP_benchmark's loaders have it: a picture of Pillow, transformed, and its class.

    Args:
        images: the set.
        transform: OpenCLIP's.
    """

    def __init__(self, images: LabelledSet, transform: Any) -> None:
        self.classes = list(images.classnames)
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        picture = Image.open(io.BytesIO(self._images.encoded(i))).convert("RGB")
        return self._transform(picture), int(self._images.labels[i])


class Peer:
    """CLIP_benchmark's two halves of a zero-shot classification.

    Args:
        problem: what is classified.
        device: where its model computes.
    """

    def __init__(self, problem: Problem, device: str) -> None:
        self._device = device
        problem.theirs.to(device)
        open_clip = import_open_clip()
        self._problem, self._functions = problem, functions()
        self._tokenizer = open_clip.tokenize
        transform = open_clip.transform.image_transform(image_size(problem), is_train=False)
        self._pictures = Pictures(problem.images, transform)

    def classifier(self) -> Tensor:
        """``[D, C]``, a column for each class."""
        images = self._problem.images
        found: Tensor = self._functions.zero_shot_classifier(
            self._problem.theirs,
            self._tokenizer,
            list(images.classnames),
            list(images.templates),
            self._device,
            amp=False,
        )
        return found

    def logits(self, classifier: Tensor, workers: int) -> tuple[Tensor, Tensor]:
        """Scores of all images and their classes.

        Args:
            classifier: of ``classifier``.
            workers: processes of the DataLoader.
        """
        loader: DataLoader = DataLoader(self._pictures, batch_size=BATCH, num_workers=workers)
        scores, labels = self._functions.run_classification(
            self._problem.theirs, classifier, loader, self._device, amp=False
        )
        return scores, labels

    def metrics(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        """As its ``evaluate`` computes them of scores.

        Its ``accuracy`` ends in ``float()`` of an array of one element, which newer versions of
        NumPy refuse.
        """
        from sklearn.metrics import balanced_accuracy_score

        best = scores.topk(min(5, scores.shape[1]), 1, True, True)[1]
        right = best.eq(labels[:, None])
        found = {"acc1": right[:, :1].float().sum().item() / len(labels)}
        if scores.shape[1] >= 5:
            found["acc5"] = right.float().sum().item() / len(labels)
        recall = balanced_accuracy_score(labels, scores.argmax(axis=1))
        return {**found, "mean_per_class_recall": float(recall)}


def functions() -> Any:
    """CLIP_benchmark's module of zero-shot classification, without its progress bars.

    Raises:
        ImportError: it, or what it needs, is not installed; says what to do.
    """
    import_open_clip()
    try:
        from clip_benchmark.metrics import zeroshot_classification as found
    except ImportError as error:
        raise ImportError(
            "CLIP_benchmark is compared with: pip install --no-deps clip_benchmark; pip install "
            f"scikit-learn ({error})"
        ) from error
    found.tqdm = lambda items: items
    return found


def peer_name() -> str:
    """CLIP_benchmark and its version."""
    return f"CLIP_benchmark {version('clip_benchmark')}"

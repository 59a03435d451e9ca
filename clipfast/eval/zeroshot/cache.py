"""Zero-shot classifiers on disk, each under the hash of all that it depends on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import clipfast
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.hashes import text_hash
from clipfast.eval.zeroshot.classifier import build_classifier
from clipfast.files import write_whole

_log = logging.getLogger(__name__)
_DIGITS = 16


class ClassifierCache:
    """Builds a classifier, or reads the one that was built of the same.

    A file holds the weights and says what they were made of. One that says otherwise, or cannot be
    read, is named in the log and built anew.

    Args:
        folder: where the files are; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def classifier(
        self, encoder: ImageEncoder, name: str, names: Sequence[str], templates: Sequence[str]
    ) -> Tensor:
        """Weights of the classifier. A collective.

        Args:
            encoder: of the model.
            name: that the file's name begins with, such as that of the data set.
            names: C class names.
            templates: prompts.

        Returns:
            ``[C, D]`` float32 on the CPU, see ``build_classifier``.

        Raises:
            ValueError: see ``build_classifier``.
            OSError: the file cannot be written.
        """
        if self.folder is None:
            return build_classifier(encoder, names, templates)
        about = _about(encoder, names, templates)
        key = hashlib.sha256(about.encode()).hexdigest()[:_DIGITS]
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}_{key}.npz"
        is_main = encoder.sharing.rank == 0
        shape = (len(names), encoder.model.config.embed_dim)
        found = _read(path, about, shape) if is_main else None
        # What rank 0 found, so that all of them build, or none.
        found = encoder.sharing.gather_objects(found)[0]
        if found is not None:
            return found
        weights = build_classifier(encoder, names, templates)
        if is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, about, weights)
        return weights


def _about(encoder: ImageEncoder, names: Sequence[str], templates: Sequence[str]) -> str:
    return json.dumps(
        {
            "clipfast": clipfast.__version__,
            "text tower": text_hash(encoder.model),
            "dtype": str(encoder.dtype),
            "names": list(names),
            "templates": list(templates),
        }
    )


def _read(path: Path, about: str, shape: tuple[int, int]) -> Tensor | None:
    """The weights in a file; None where there is none that fits."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            said, weights = str(file["about"]), file["weights"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("the cached classifier %s cannot be read and is built anew: %s", path, error)
        return None
    if said != about:
        differing = _differing(said, about)
        _log.warning("the cached classifier %s is of other %s: built anew", path, differing)
        return None
    if weights.shape != shape or weights.dtype != np.float32 or not np.isfinite(weights).all():
        _log.warning(
            "the cached classifier %s holds no %d x %d finite numbers: built anew", path, *shape
        )
        return None
    return torch.from_numpy(weights)


def _write(path: Path, about: str, weights: Tensor) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, weights=weights.numpy(), about=np.array(about))
    write_whole(path, buffer.getvalue())


def _differing(said: str, about: str) -> str:
    """The names of what differs, for a person."""
    try:
        before, now = json.loads(said), json.loads(about)
        return ", ".join(name for name in now if before.get(name) != now[name])
    except (ValueError, AttributeError):
        return "content"

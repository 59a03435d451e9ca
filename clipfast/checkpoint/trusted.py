"""Read what ``torch.save`` wrote without running what a file brings.

A pickle is a program. ``torch.load(weights_only=True)`` runs the part of it that builds tensors and
plain containers, and no function but those named here: classes of DeepSpeed that hold numbers.
"""

import contextlib
import importlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clipfast.checkpoint.fragments import header_problem

# What DeepSpeed 0.19 writes at every stage of ZeRO and in every precision; a test compares.
ALLOWED = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


class Refused(ValueError):
    """A file asks for what is not allowed, or cannot be read; nothing of it was run."""


def load_trusted(path: str | Path, map_location: Any = "cpu") -> Any:
    """What a file holds.

    Args:
        path: of ``torch.save``.
        map_location: as of ``torch.load``.

    Raises:
        Refused: it asks for a function or a class that is not allowed, or is damaged.
        OSError: it cannot be read.
    """
    if wanted := refused_globals(path):
        raise Refused(_message(path, wanted))
    with _allowed():
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a damaged file can raise nearly anything
            # torch's own message goes on for paragraphs about how to trust the file.
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise Refused(f"{path} was refused, nothing of it was run: {reason[0]}") from error


def refused_globals(path: str | Path) -> list[str]:
    """Names of functions and classes that a file asks for and that are not allowed.

    Args:
        path: of ``torch.save``. In the form of before torch 1.6 names are not looked for here;
            ``load_trusted`` still refuses them.

    Raises:
        Refused: the file is damaged.
    """
    if not zipfile.is_zipfile(path):
        return []
    with _allowed():
        try:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except Exception as error:  # a damaged file can raise nearly anything
            raise Refused(f"{path} was refused, nothing of it was run: {error}") from error


def why_refused(path: str | Path) -> str:
    """Why a file of a checkpoint with a manifest would be refused; empty where it would not.

    Args:
        path: of the file: safetensors, which hold nothing that could be run, or of an earlier
            version an archive, where names can be looked for.
    """
    if Path(path).suffix == ".safetensors":
        return header_problem(Path(path))
    if not zipfile.is_zipfile(path):
        return "it is no archive of torch.save"
    wanted = refused_globals(path)
    if not wanted:
        return ""
    return f"it asks for {', '.join(wanted)}, which no checkpoint of clipfast holds"


def _message(path: str | Path, wanted: list[str]) -> str:
    return (
        f"{path} was refused, nothing of it was run: it asks for {', '.join(wanted)}, which no "
        "checkpoint of clipfast holds. It may have been made to harm whoever loads it"
    )


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    classes = []
    for name in ALLOWED:
        module, _, attribute = name.rpartition(".")
        with contextlib.suppress(ImportError, AttributeError):
            classes.append(getattr(importlib.import_module(module), attribute))
    with torch.serialization.safe_globals(classes):
        yield

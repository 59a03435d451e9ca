"""Loads what is compiled: clipfast._C (C++/CUDA operators) and clipfast.kernels (Triton)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType

REMEDY = "run `pip install -e . --no-build-isolation` in the repository's folder"


@functools.cache
def load_extension() -> ModuleType | None:
    """clipfast._C, whose import registers the compiled operators; None where it cannot be had.

    Without it every operator still works, in plain torch and several times slower: a warning says
    so, once per process.

    Returns:
        The module, or None when it was not built, or was built for another torch.

    Raises:
        ImportError: CLIPFAST_CPU_CAPABILITY asks for what this machine does not have.
    """
    import torch  # noqa: F401  (the extension's symbols live in torch's libraries)

    if importlib.util.find_spec("clipfast._C") is None:
        reason = "it has not been built here"
    else:
        try:
            return importlib.import_module("clipfast._C")
        except ImportError as error:
            if "CLIPFAST_CPU_CAPABILITY" in str(error):
                raise
            reason = f"it was built against another torch or Python ({error})"
    warnings.warn(
        f"clipfast's compiled operators are absent: {reason}. Plain torch serves in their place, "
        f"slower. To build them, {REMEDY}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def has_cuda_operators() -> bool:
    """Whether clipfast._C holds CUDA kernels."""
    extension = load_extension()
    return extension is not None and bool(extension.build_info()["cuda"])


def import_kernels(name: str) -> ModuleType:
    """Imports the launchers of an operator, on first use: Triton takes long to import.

    Args:
        name: the operator's room, such as "normalize".

    Returns:
        The module clipfast.kernels.<name>.launch.

    Raises:
        ImportError: `kernels/` is not installed as clipfast.kernels. That is so when clipfast is
            found through PYTHONPATH or the current folder (DeepSpeed's multi-node launcher sets
            PYTHONPATH to it) and hides an install that is not editable.
    """
    try:
        return importlib.import_module(f"clipfast.kernels.{name}.launch")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("clipfast.kernels"):
            raise
        raise ImportError(
            f"clipfast.kernels.{name} was not found: this clipfast was imported from its source "
            f"folder (through the current folder or PYTHONPATH), where kernels/ is not part of "
            f"the package until an editable install maps it there. Remedy: {REMEDY}."
        ) from error

"""What a test needs beside torch and pytest: it is skipped by name where that is absent.

    @pytest.mark.needs("triton")         on a test; or in a test or a fixture:
    need("nvcc")

An import that fails for want of Triton or of one of ``PACKAGES``, in a test or in a module of
tests, skips in the same way, so that nothing has to be said there.

``CLIPFAST_REQUIRE`` names what must be here, separated by commas: its absence is a failure then, of
each test that needs it and of the run. Names are those of ``THINGS`` and ``PACKAGES``, "cuda" for a
GPU and its operators, and "packages" for all of them. ``CLIPFAST_BUILD_CUDA=1``, with which a build
without CUDA fails, requires the CUDA operators. A GPU that ``CUDA_VISIBLE_DEVICES=`` hides is not
required.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

REQUIRE = "CLIPFAST_REQUIRE"
# How it is imported, and what to install. None of them is needed by the operators.
PACKAGES = {
    "PIL": "pillow",
    "clip_benchmark": "clip_benchmark",
    "deepspeed": "deepspeed",
    "faiss": "faiss-cpu",
    "flask": "flask",
    "flask_cors": "flask-cors",
    "ftfy": "ftfy",
    "hypothesis": "hypothesis",
    "kubeflow_trainer_api": "kubeflow-trainer-api",
    "matplotlib": "matplotlib",
    "moto": "moto[s3]",
    "nvidia.dali": "nvidia-dali-cuda130",
    "obstore": "obstore",
    "open_clip": "open_clip_torch",
    "open_clip_train": "open_clip_torch",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "tokenizers": "tokenizers",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
    "tyro": "tyro",
    "wds2idx": "webdataset",
    "webdataset": "webdataset",
    "yaml": "pyyaml",
}


def _is_importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _cuda_device() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA device"


def _extension() -> str | None:
    from clipfast.ops.extension import load_extension

    return "clipfast._C is not built" if load_extension() is None else None


def _cuda_operators() -> str | None:
    from clipfast.ops.extension import has_cuda_operators

    return None if has_cuda_operators() else "clipfast._C has no CUDA operators"


def _emulator() -> str | None:
    from tests import cuda_emulator

    return cuda_emulator.obstacle()


def _mount() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return "no file system may be mounted here"
        subprocess.run(["umount", folder], check=True)
    return None


def _hosts() -> str | None:
    from tests.campaigns import namespaces

    return namespaces.obstacle()


def _triton() -> str | None:
    if not _is_importable("triton"):
        return "triton is not installed"
    return None if _is_importable("clipfast.kernels") else "clipfast.kernels cannot be imported"


def _cuda_12_compiler() -> str | None:
    from tests.cuda_emulator import volta

    return None if volta.parts() is not None else volta.REMEDY


def _program(name: str) -> str | None:
    return None if shutil.which(name) else f"{name} is not on PATH"


def nginx() -> str | None:
    """Where nginx is; Debian keeps it where only root looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _nginx() -> str | None:
    return None if nginx() else "nginx is not here (apt-get install nginx-light)"


def _service(name: str) -> str | None:
    """A package at the edge, such as one that shows runs: no test run has to have it."""
    return None if _is_importable(name) else f"{name} is not installed (pip install {name})"


def _wordnet() -> str | None:
    found = Path("/usr/share/wordnet/data.noun").is_file()
    return None if found else "WordNet's files are not here (apt-get install wordnet-base)"


# Why it is absent, or None.
THINGS: dict[str, Callable[[], str | None]] = {
    "chromium": functools.partial(_program, "chromium"),
    "cuda-12-compiler": _cuda_12_compiler,
    "cuda-device": _cuda_device,
    "cuda-operators": _cuda_operators,
    "emulator": _emulator,
    "azurite-blob": functools.partial(_program, "azurite-blob"),
    "extension": _extension,
    "g++": functools.partial(_program, "g++"),
    "hosts": _hosts,
    # In an environment of its own: it takes an older webdataset.
    "img2dataset": functools.partial(_program, "img2dataset"),
    "make": functools.partial(_program, "make"),
    "mount": _mount,
    "nginx": _nginx,
    "nvcc": functools.partial(_program, "nvcc"),
    "ray": functools.partial(_service, "ray"),
    "trackio": functools.partial(_service, "trackio"),
    "triton": _triton,
    "wandb": functools.partial(_service, "wandb"),
    "wordnet": _wordnet,
}
GROUPS = {"cuda": ("cuda-device", "cuda-operators"), "packages": tuple(PACKAGES)}


@functools.cache
def obstacle(name: str) -> str | None:
    """Why something is absent here, or None where it is present.

    Args:
        name: of ``THINGS`` or ``PACKAGES``.
    """
    if name in THINGS:
        return THINGS[name]()
    if _is_importable(name):
        return None
    return f"{name} is not installed (pip install {PACKAGES[name]})"


def required() -> set[str]:
    """What ``CLIPFAST_REQUIRE`` and ``CLIPFAST_BUILD_CUDA`` name, groups taken apart.

    Raises:
        UsageError: A name is unknown.
    """
    words = {word.strip() for word in os.environ.get(REQUIRE, "").split(",")} - {""}
    if unknown := words - {*THINGS, *PACKAGES, *GROUPS}:
        known = ", ".join([*GROUPS, *THINGS, *PACKAGES])
        raise pytest.UsageError(f"{REQUIRE}: no {', '.join(sorted(unknown))}; there are {known}")
    names = {name for word in words for name in GROUPS.get(word, (word,))}
    if os.environ.get("CLIPFAST_BUILD_CUDA") == "1":
        names.add("cuda-operators")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # hidden on purpose
        names.discard("cuda-device")
    return names


def unmet() -> list[str]:
    """What is required and absent, with the reason."""
    reasons = {name: obstacle(name) for name in sorted(required())}
    return [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]


def need(*names: str) -> None:
    """Skip the test where one of these is absent; fail it where that is required.

    Args:
        names: of ``THINGS`` or ``PACKAGES``.
    """
    for name in names:
        if (reason := obstacle(name)) is not None:
            if name in required():
                pytest.fail(f"{reason}, and it is required", pytrace=False)
            pytest.skip(reason)


def absent_package(error: BaseException | None) -> str | None:
    """The absent package of ``PACKAGES``, or Triton, for want of which an import failed, or None.

    Args:
        error: of a test, or of pytest about a module that it could not import.
    """
    if not isinstance(error, (ImportError, pytest.Collector.CollectError)):
        return None
    for one in _chain(error):
        if isinstance(one, ModuleNotFoundError) and one.name:
            for name in (one.name, one.name.partition(".")[0]):
                if name in {*PACKAGES, "triton"} and obstacle(name) is not None:
                    return name
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def excuse(
    report: pytest.TestReport | pytest.CollectReport, call: pytest.CallInfo[Any], path: Path
) -> None:
    """Make a report of an import that failed for want of a package one of a skip.

    Args:
        report: is changed. Where the package is required, only what it says is.
        call: that it is about.
        path: of the module of tests.
    """
    error = call.excinfo.value if call.excinfo and report.failed else None
    name = absent_package(error)
    if name is None:
        return
    if name in required():
        report.longrepr = f"{obstacle(name)}, and it is required"
    else:
        report.outcome = "skipped"
        report.longrepr = (str(path), 0, f"Skipped: {obstacle(name)}")

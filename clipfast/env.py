"""What this machine has, what of clipfast is built on it, and which optional parts would add what.

    python -m clipfast.env           for people
    python -m clipfast.env --json    the stamp that benchmarks write beside their figures
    python -m clipfast.env --peers   whether OpenCLIP imports here, and what to do where it does not

Versions come from the packages' metadata, so nothing heavy is imported just to learn its number.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import warnings
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import clipfast

CORE = ("torch", "triton", "numpy", "ninja", "pybind11")

# name of the part -> (distributions that bring it, what it gives). None is needed to import
# clipfast; the extra that installs each is in setup.py.
OPTIONAL = {
    "deepspeed": (("deepspeed",), "multi-GPU and multi-node training: ZeRO, launcher, checkpoints"),
    "DALI": (
        ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        "decoding, cropping and resizing of images in parallel, on the GPU where there is one",
    ),
    "tokenizers": (("tokenizers",), "the byte-pair engine under clipfast.tokenize"),
    "ftfy": (("ftfy",), "repair of broken Unicode in captions before they become tokens"),
    "webdataset": (("webdataset",), "reading and writing of tar shards other than clipfast's own"),
    "tyro": (("tyro",), "recipe settings on the command line"),
    "tensorboard": (("tensorboard",), "training curves in the browser"),
    "matplotlib": (("matplotlib",), "plots of benchmarks and of the demo"),
    "safetensors": (("safetensors",), "weights in the safetensors format, a run's final ones too"),
    "pillow": (("pillow",), "checking and packing of images, transparency laid on white"),
    "apex": (
        ("apex",),
        "fused optimizers and norms to compare with; clipfast has its own and never needs it",
    ),
    "open_clip_torch": (("open_clip_torch",), "a peer to compare with, in tests and benchmarks"),
    "scikit-learn": (("scikit-learn",), "linear probes: logistic regression on features"),
}

REBUILD = "pip install -e . --no-build-isolation"


def version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed, else None."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def run(*command: str, cwd: Path | None = None) -> str | None:
    """A command's output, or None where the command is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str | None:
    """The commit of the source tree, with "+changes" where tracked files differ from it."""
    root = Path(clipfast.__file__).resolve().parents[1]
    # An installed copy may lie inside somebody else's repository.
    if not (root / ".git").exists():
        return None
    head = run("git", "rev-parse", "HEAD", cwd=root)
    if head is None:
        return None
    changed = run("git", "status", "--porcelain", "--untracked-files=no", cwd=root)
    return f"{head}+changes" if changed else head


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def driver_version() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    words = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return words.splitlines()[0] if words else None


def devices() -> dict[str, Any]:
    """The CPU, the GPUs that torch sees, and torch's own version."""
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            gpus.append(
                {
                    "name": card.name,
                    "capability": f"{card.major}.{card.minor}",
                    "memory_gib": round(card.total_memory / 2**30, 1),
                }
            )
    return {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "driver": driver_version() if gpus else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
    }


def extension() -> dict[str, Any]:
    """What of clipfast._C is built: its build_info(), or {"built": False, "reason": ...}."""
    import torch  # noqa: F401  (the extension's symbols live in torch's libraries)

    if importlib.util.find_spec("clipfast._C") is None:
        return {"built": False, "reason": f"not compiled here: {REBUILD}"}
    try:
        compiled = importlib.import_module("clipfast._C")
    except ImportError as error:
        return {"built": False, "reason": f"{error}; rebuild: {REBUILD}"}
    return {"built": True, "cpu_capability": compiled.cpu_capability, **compiled.build_info()}


def kernels() -> dict[str, Any]:
    """Whether the Triton kernels can be imported, and why not."""
    if importlib.util.find_spec("triton") is None:
        return {"present": False, "reason": "Triton is not installed"}
    if importlib.util.find_spec("clipfast.kernels") is None:
        reason = f"this clipfast is a source folder without an editable install: {REBUILD}"
        return {"present": False, "reason": reason}
    return {"present": True}


def stamp() -> dict[str, Any]:
    """Everything that a figure depends on, in types that json takes.

    Returns:
        clipfast (version), commit, date (UTC, ISO 8601), platform, python, versions (distribution
        or part -> version or None), device (see devices()), extension (see extension()) and
        kernels (see kernels()).
    """
    with warnings.catch_warnings():
        # A CUDA torch without a driver warns at each question; the answer says it already.
        warnings.simplefilter("ignore")
        device = devices()
    return {
        "clipfast": clipfast.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            **{name: version(name) for name in CORE},
            # Unlike the metadata of some wheels, this says which CUDA it was built for.
            "torch": device.pop("torch"),
            **{part: version(*names) for part, (names, _) in OPTIONAL.items()},
        },
        "device": device,
        "extension": extension(),
        "kernels": kernels(),
    }


def _extension_lines(info: dict[str, Any], triton: dict[str, Any]) -> list[str]:
    if info["built"]:
        lines = [
            f"  C++ (CPU)   built for {', '.join(info['cpu_capabilities'])}; "
            f"this machine runs {info['cpu_capability']}",
            f"  CUDA        built for {info['cuda_archs']} ({info['cuda_reason']})"
            if info["cuda"]
            else f"  CUDA        not built: {info['cuda_reason']}",
        ]
    else:
        lines = [f"  C++, CUDA   not built: {info['reason']}; plain torch serves, slower"]
    lines.append("  Triton      " + ("present" if triton["present"] else triton["reason"]))
    return lines


def report(info: dict[str, Any]) -> str:
    """The stamp in words, a section each for machine, build, core and optional parts."""
    device, versions = info["device"], info["versions"]
    lines = [
        f"clipfast {info['clipfast']} ({info['commit'] or 'no commit'}), {info['date']}",
        "",
        "machine",
        f"  {info['platform']}, Python {info['python']}",
        f"  CPU {device['cpu']}, {device['cpu_capability']}, {device['threads']} threads",
    ]
    for gpu in device["gpus"]:
        lines.append(f"  GPU {gpu['name']}, sm {gpu['capability']}, {gpu['memory_gib']} GiB")
    if device["gpus"]:
        lines.append(f"  driver {device['driver']}, torch's CUDA {device['cuda']}")
    else:
        lines.append(f"  no GPU that torch sees (torch's CUDA: {device['cuda'] or 'none'})")
    lines += ["", "operators", *_extension_lines(info["extension"], info["kernels"])]
    lines += ["", "core", *(f"  {name:16}{versions[name] or 'absent'}" for name in CORE)]
    lines += ["", "optional"]
    for part, (_, use) in OPTIONAL.items():
        lines.append(f"  {part:16}{versions[part] or 'absent':14}{use}")
    return "\n".join(lines)


def open_clip_problem() -> str | None:
    """Why ``import open_clip`` fails here, and what to do; None where it works or is not installed.

    Mostly it is torchvision: the package index has the one for a GPU, whose compiled part does not
    load beside a CPU torch.
    """
    if version("open_clip_torch") is None:
        return None
    command = [sys.executable, "-c", "import torchvision, open_clip"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        return f"import open_clip could not be tried: {error}"
    if done.returncode == 0:
        return None
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    import torch

    release, _, built_for = torch.__version__.partition("+")
    seen = version("torchvision") or "absent"
    lines = [
        f"import open_clip fails: {reason}",
        f"torch is {torch.__version__}, torchvision {seen}"
        + ("" if version("torchvision") else ", which open_clip needs"),
    ]
    if "torchvision" in reason or seen == "absent":
        cuda = torch.version.cuda
        index = built_for or ("cu" + cuda.replace(".", "") if cuda else "cpu")
        # torchvision 0.N + 15 is made for torch 2.N.
        matching = f"0.{int(release.split('.')[1]) + 15}.*"
        lines += [
            "install the torchvision that was built for this torch:",
            f"  {sys.executable} -m pip install --no-deps --force-reinstall "
            f'"torchvision=={matching}" --index-url https://download.pytorch.org/whl/{index}',
            "without it, clipfast's tests and benchmarks import OpenCLIP by "
            "benchmarks.peers.import_open_clip()",
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Prints the report, or the stamp as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m clipfast.env", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print the stamp instead")
    parser.add_argument("--peers", action="store_true", help="say only whether OpenCLIP imports")
    chosen = parser.parse_args(arguments)
    if chosen.json:
        print(json.dumps(stamp(), indent=2))
        return
    problem = open_clip_problem()
    if chosen.peers:
        print(problem or "OpenCLIP imports, or is not installed")
        return
    print(report(stamp()))
    if problem:
        print("\npeers\n  " + problem.replace("\n", "\n  "))


if __name__ == "__main__":
    main(sys.argv[1:])

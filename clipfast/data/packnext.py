"""What to run once data are packed, as a line that a shell takes as it is."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import clipfast
from clipfast.storage.paths import join

_LARGEST = 32_768  # the paper's
_MICRO_BATCH = 256


def check_folder(output: str) -> None:
    """Refuse a folder whose shards no pattern could name.

    Raises:
        ValueError: its path has a brace, which patterns read as a range.
    """
    if "{" in output or "}" in output:
        raise ValueError(
            f"--output {output!r}: patterns of shards read braces as ranges, and could not name "
            "this folder; choose a path without them"
        )


def next_command(output: str, shards: int, samples: int) -> str:
    """A training run on packed shards, from the folder that this process runs in.

    Args:
        output: folder of the shards.
        shards: their number.
        samples: in all of them.

    Returns:
        Words for a shell; where one sample is all there is, what else it takes.
    """
    if samples < 2:
        return "pack more samples: a batch holds at least 2, since one pair alone has no contrast"
    last = f"{{00000..{shards - 1:05d}}}" if shards > 1 else "00000"
    # A dash in front would be an option's.
    folder = join(".", output) if output.startswith("-") else output
    # A power of two, which the ranks of a node divide.
    batch = min(_LARGEST, 1 << (samples.bit_length() - 1))
    words = [*_launcher(), _recipe(), "--data.train", join(folder, f"{last}.tar")]
    if batch < _LARGEST:
        words += ["--batch-size", str(batch)]
    if batch > _MICRO_BATCH:
        words += ["--micro-batch", str(_MICRO_BATCH)]
    return shlex.join(words)


def _launcher() -> list[str]:
    if shutil.which("deepspeed"):
        return ["deepspeed"]
    return [sys.executable, "-m", "deepspeed.launcher.runner"]


def _recipe() -> str:
    recipe = Path(clipfast.__file__).resolve().parents[1] / "recipes" / "rn50.py"
    # As short as it can be written from here.
    return min(str(recipe), os.path.relpath(recipe), key=len)

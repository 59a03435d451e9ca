"""Mutates and judges one case for each line of its input; `fuzz` starts it, for any checkout.

The line is {"seed", "number"}; the answer is {"case", "attack", "ended", "wrong"}.
"""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

# The checkout that is attacked, before the folder of these programs is looked at.
import clipfast.data.index

ROOT = Path(__file__).resolve().parents[2]
assert Path(clipfast.data.index.__file__).exists()
sys.path.insert(0, str(ROOT))

from tests.campaigns import fuzz_indexes, fuzz_judge, fuzz_oracle, fuzz_tars  # noqa: E402
from tests.data.tars import END  # noqa: E402

SECONDS = 2.0
# More than any case needs, on top of what the libraries take.
_MEMORY = 512 << 20
_OF_INDEXES = 0.4


class Hang(BaseException):
    """A case took too long. No ``except Exception`` on the way may take it for an error."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise Hang


def case(seed: int, number: int, folder: Path) -> dict[str, Any]:
    """Make a case and judge it."""
    chance = Random(f"{seed} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    indexes = chance.random() < _OF_INDEXES
    try:
        name, judge = (_index_case if indexes else _tar_case)(chance, folder / "x.tar")
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            ended, wrong = judge()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Hang:
        name, ended, wrong = "?", "hang", f"longer than {SECONDS:g} s"
    except MemoryError:
        name, ended, wrong = "?", "memory", f"more than {_MEMORY >> 20} MiB"
    except Exception as error:  # a sane tar that is not read, or whatever nobody named
        name, ended, wrong = "?", "failed", f"{type(error).__name__}: {error}"[:200]
    return {"case": name, "attack": f"{seed}/{number}", "ended": ended, "wrong": wrong}


def _tar_case(chance: Random, path: Path) -> tuple[str, Any]:
    name, data = fuzz_tars.mutated(chance)
    path.write_bytes(data)
    truth = _truth(data)
    return f"tar: {name}", lambda: fuzz_judge.judge_tar(path, truth)


def _truth(data: bytes) -> fuzz_oracle.Reading:
    """Python's own reader goes round for ever on some tars; it says nothing of them then."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return fuzz_oracle.read(data)
    except (Hang, MemoryError):
        return fuzz_oracle.Reading(whole=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _index_case(chance: Random, path: Path) -> tuple[str, Any]:
    parts = list(chance.choice(fuzz_tars.bases()))
    data = b"".join(parts) + END
    path.write_bytes(data)
    clipfast.data.index.index_shards(
        [str(path)], workers=1, dali=False, progress=False, report=str(path.with_suffix(".tsv"))
    )
    truth = fuzz_judge.pairs_of(path)
    index = path.with_suffix(".idx")
    text = index.read_bytes()
    marked = len(text.split(b"\n")[0].split()) > 2 and chance.random() < 0.6
    text = text if marked else fuzz_indexes.unmarked(text)
    kind = "index" if marked else "index without a mark"
    if chance.random() < 0.75:
        name, text = fuzz_indexes.mutated(text, chance)
        index.write_bytes(text)
        # Whoever takes the mark away has made it an index of another program.
        whole = marked and len(text.split(b"\n")[0].split()) > 2
        return f"{kind}: {name}", lambda: fuzz_judge.judge_index(path, truth, whole)
    name, other = _replaced(parts, data, chance)
    path.write_bytes(other)
    index.write_bytes(text)
    stamp = path.stat().st_mtime_ns
    os.utime(index, ns=(stamp, stamp + 10**9))
    if marked and other != data:
        truth = []
    elif other != data:
        truth = _pairs_in(other, truth)
    return f"{kind}, tar: {name}", lambda: fuzz_judge.judge_index(path, truth, marked)


def _replaced(parts: list[bytes], data: bytes, chance: Random) -> tuple[str, bytes]:
    """Another tar in the place of an indexed one, of the same size most often."""
    which = chance.choice(["parts swapped", "other captions", "bytes", "another tar"])
    if which == "parts swapped":
        fuzz_tars.swap_parts(parts, chance)
        return which, b"".join(parts) + END
    if which == "other captions":
        return which, data.replace(b"a", b"b") if chance.random() < 0.5 else data[:-1024] + END
    if which == "bytes":
        return which, fuzz_tars.overwrite(data, chance)
    return which, fuzz_tars.mutated(chance)[1]


def _pairs_in(data: bytes, samples: list[fuzz_judge.Pair]) -> list[fuzz_judge.Pair]:
    """What an index without a mark may give of a tar that was replaced: its own samples' keys."""
    files = _truth(data).files
    keys = {key for key, _, _ in samples}
    found: dict[str, tuple[list[bytes], list[bytes]]] = {}
    for name, offset, size in files:
        stem, _, extension = name.rpartition("/")[2].partition(".")
        key = name[: len(name) - len(name.rpartition("/")[2])] + stem
        if key in keys:
            images, captions = found.setdefault(key, ([], []))
            (captions if extension.lower() == "txt" else images).append(
                data[offset : offset + size]
            )
    return [
        (key, image, caption)
        for key, (images, captions) in found.items()
        for image in images
        for caption in captions
    ]


def main() -> None:
    """Answer until the input ends."""
    # What a case prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGALRM, _ring)
    folder = Path(sys.argv[1])
    # The first case loads the libraries, which need more than a case may take.
    case(-1, 0, folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.RLIM_INFINITY))
    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps(case(job["seed"], job["number"], folder)) + "\n")


if __name__ == "__main__":
    main()

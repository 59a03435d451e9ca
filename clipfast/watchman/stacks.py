"""What ``faulthandler`` writes of a process, read: where its main thread stands, and whether it
waits for other ranks there."""

import linecache
import re
from dataclasses import dataclass
from pathlib import Path

_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+")
_FRAME = re.compile(r'  File "(.+)", line (\d+) in (.+)')
# Calls that return once other ranks, or the device that waits for them, have come as far.
_WAITS = re.compile(
    r"\bwait(_tensor|_stream)?\(|\.synchronize\(|\.item\(|\.tolist\(|\.cpu\("
    r"|\ball_(reduce|gather|to_all)|reduce_scatter|broadcast|\bbarrier\("
)
_COLLECTIVES = re.compile(r"/(torch/distributed|deepspeed/comm)/")
_OTHERS = re.compile(r"/(site-packages|dist-packages|lib/python3[.\d]*)/")
# Frames of a rank in a report.
_SHOWN = 5


@dataclass(frozen=True)
class Frame:
    """One call.

    Attributes:
        path: of the file.
        line: in it.
        function: that it is in.
    """

    path: str
    line: int
    function: str

    @property
    def is_ours(self) -> bool:
        """It is clipfast's or the recipe's, and not a library's."""
        return "/clipfast/" in self.path or not _OTHERS.search(self.path)

    def __str__(self) -> str:
        parts = Path(self.path).parts
        for name in ("clipfast", "site-packages"):
            if name in parts:
                last = len(parts) - 1 - parts[::-1].index(name)
                parts = parts[last + (name == "site-packages") :]
                break
        return f"{'/'.join(parts).replace('//', '/')}:{self.line} in {self.function}"


def main_thread(text: str) -> list[Frame]:
    """The frames of the main thread, the innermost first; empty where there is no dump.

    Args:
        text: all threads, as ``faulthandler`` writes them from a signal handler. The system hands a
            signal of the process to its main thread, which is then called the current one.
    """
    threads: list[tuple[bool, list[Frame]]] = []
    for line in text.splitlines():
        if found := _THREAD.match(line):
            threads.append((found[1] == "Current thread", []))
        elif threads and (frame := _FRAME.fullmatch(line)):
            threads[-1][1].append(Frame(frame[1], int(frame[2]), frame[3]))
    current = [frames for is_current, frames in threads if is_current]
    # A thread without the interpreter's lock is not told apart: the oldest comes last.
    return (current or [frames for _, frames in threads] or [[]])[-1]


def is_waiting(frames: list[Frame]) -> bool:
    """Whether a thread waits for other ranks, or for a device that may wait for them.

    Args:
        frames: of ``main_thread``.
    """
    for frame in frames:
        if _COLLECTIVES.search(frame.path):
            return True
        if frame.is_ours:
            return bool(_WAITS.search(linecache.getline(frame.path, frame.line)))
    return False


def telling(frames: list[Frame]) -> list[str]:
    """The few frames that tell a person where a thread stands: the innermost one, and the innermost
    of clipfast and the recipe.

    Args:
        frames: of ``main_thread``.
    """
    ours = [frame for frame in frames[1:] if frame.is_ours]
    return [str(frame) for frame in (*frames[:1], *ours[: _SHOWN - 1])]

"""What libraries print while a run starts goes to a file; what clipfast says goes to the person.

Compilers, accelerators' warnings and notices about coming versions hide the lines that matter.
"""

import faulthandler
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from clipfast.files import append

# Notices to programmers; other warnings stay where a person sees them.
_NOTICES = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
_SHOWN = 60
# In the folder of a run.
LOGS = "logs"

_person: TextIO | None = None


def tell(*lines: str) -> None:
    """Print for a person, while a start is logged too.

    Args:
        lines: each a line.
    """
    for line in lines:
        print(line, file=_person or sys.stdout, flush=True)


class StartLog:
    """The log of one rank."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Take what is printed inside, by other programs and C++ too. Where the block fails for
        another reason than a configuration, the last lines are shown."""
        global _person
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
        out, err = (os.fdopen(os.dup(descriptor), "w") for descriptor in kept)
        streams = [handler.stream for handler in handlers]
        is_silent = getattr(sys.stdout, "name", os.devnull) == os.devnull
        _person = sys.stdout if is_silent else out
        for handler in handlers:
            handler.setStream(err)
        faulthandler.enable(err)
        for number in (1, 2):
            os.dup2(self._file.fileno(), number)
        failed = True
        try:
            yield
            failed = False
        except (SystemExit, KeyboardInterrupt, ValueError):
            # A ConfigError among others: the message itself says what there is to say.
            failed = False
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            _person = None
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            for handler, stream in zip(handlers, streams, strict=True):
                handler.setStream(stream)
            faulthandler.disable()
            out.close()
            err.close()
            if failed:
                print("\n".join(self._lines()[-_SHOWN:]), file=sys.stderr, flush=True)

    def keep(self, folder: Path, rank: int) -> None:
        """Write it into a folder, and further notices of libraries too.

        Args:
            folder: of the run's logs.
            rank: this one.
        """
        path = folder / f"start-rank{rank}.txt"
        # A disk without room for it costs the log, not the run.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            append(path, "".join(line + "\n" for line in self._lines()))
        self._file.close()
        _send_notices(path)

    def _lines(self) -> list[str]:
        self._file.seek(0)
        return self._file.read().decode(errors="replace").splitlines()


def _send_notices(path: Path) -> None:
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> Any:
        if not issubclass(category, _NOTICES):
            return shown(message, category, filename, lineno, file, line)
        with suppress(OSError):
            append(path, warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show

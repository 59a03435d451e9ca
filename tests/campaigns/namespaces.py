"""Hosts that runs are started on: see `wire`, which makes them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.campaigns.wire import Wire

_WIRE = Path(__file__).with_name("wire.py")
_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv")


class Hosts:
    """A few hosts, for as long as a ``with`` block lasts or its process lives.

    Args:
        wire: that joins them.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._process: subprocess.Popen[str] | None = None
        self._holders: list[int] = []

    def __enter__(self) -> "Hosts":
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(_WIRE), json.dumps(asdict(self.wire))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.__exit__()
            raise OSError("the hosts could not be made")
        self._holders = json.loads(line)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate()

    def enter(self, host: int) -> list[str]:
        """What to put before a command that is to run on a host, from 1."""
        spaces = ["-n", "-u", "-m", "-p", f"--wd={os.getcwd()}"]
        return ["nsenter", "-t", str(self._holders[host - 1]), *spaces, "--"]

    def run(self, host: int, command: Sequence[str], seconds: float = 30) -> str:
        """Run a command on a host to its end; what it printed."""
        line = [*self.enter(host), *command]
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds, check=True)
        return done.stdout

    def cut(self, host: int) -> None:
        """From now on no packet leaves or reaches a host, and nobody is told."""
        self._say(f"cut {host}")

    def mend(self, host: int) -> None:
        """Join a host again."""
        self._say(f"mend {host}")

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def obstacle() -> str | None:
    """Why there can be no hosts here, or None."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"no hosts can be made here: {', '.join(missing)} is not on PATH"
    try:
        with Hosts(Wire(1)) as hosts:
            hosts.run(1, ["true"])
    except (OSError, subprocess.SubprocessError):
        return "no hosts can be made here (Linux namespaces and /dev/net/tun, as root)"
    return None

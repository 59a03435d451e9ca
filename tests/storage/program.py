"""A server that runs as a program of its own while a test needs it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def running(
    command: Sequence[str], port: int, *, why: Callable[[], str] = str, **options: Any
) -> Iterator[None]:
    """Start a program, and end it behind the block.

    Args:
        command: that starts it.
        port: that it answers on, at most two minutes later.
        why: it ended, where it did.
        options: of ``subprocess.Popen``.
    """
    server = subprocess.Popen(command, **options)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, f"{command[0]} ended: {why()}"
                assert time.monotonic() < end, f"{command[0]} does not start"
                time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(20)

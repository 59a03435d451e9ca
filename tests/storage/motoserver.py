"""A server of S3's protocol behind the proxy that breaks answers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.storage.proxy import Proxy


@contextmanager
def served(folder: Path, environment: Mapping[str, str]) -> Iterator[Proxy]:
    """moto's S3 server behind a proxy. The bucket "shards" holds the folder's shards under "set".

    Args:
        folder: of tars and indexes.
        environment: of the server, beside that of this process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < end, "moto's server does not start"
                time.sleep(0.1)
        _put(port, "shards", None)
        for path in folder.iterdir():
            if path.suffix in (".tar", ".idx"):
                _put(port, f"shards/set/{path.name}", path.read_bytes())
        proxy = Proxy(port)
        yield proxy
        proxy.close()
    finally:
        server.terminate()
        server.wait(20)


def _put(port: int, key: str, data: bytes | None) -> None:
    # Without a kind it would be sent, and taken apart, as a form.
    kind = {"Content-Type": "application/x-tar"} if data is not None else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{key}", data, kind, method="PUT")
    urllib.request.urlopen(request).close()

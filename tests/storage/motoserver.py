"""A server of S3's protocol behind the proxy that breaks answers."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.campaigns.subject import free_port
from tests.storage.program import running
from tests.storage.proxy import Proxy


@contextmanager
def served(folder: Path, environment: Mapping[str, str]) -> Iterator[Proxy]:
    """moto's S3 server behind a proxy. The bucket "shards" holds the folder's shards under "set".

    Args:
        folder: of tars and indexes.
        environment: of the server, beside that of this process.
    """
    port = free_port()
    with running(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        port,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        _put(port, "shards", None)
        for path in folder.iterdir():
            if path.suffix in (".tar", ".idx"):
                _put(port, f"shards/set/{path.name}", path.read_bytes())
        proxy = Proxy(port)
        yield proxy
        proxy.close()


def _put(port: int, key: str, data: bytes | None) -> None:
    # Without a kind it would be sent, and taken apart, as a form.
    kind = {"Content-Type": "application/x-tar"} if data is not None else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{key}", data, kind, method="PUT")
    urllib.request.urlopen(request).close()

"""nginx as a server of one folder, as whoever runs the tests, on a free port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.campaigns.subject import free_port
from tests.needs import nginx
from tests.storage.program import running

_CONFIGURATION = """
daemon off;
master_process off;
pid {own}/nginx.pid;
error_log {own}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
    }}
}}
"""


@contextmanager
def serve(folder: Path, own: Path) -> Iterator[int]:
    """A running nginx; yields its port.

    Args:
        folder: what it hands out.
        own: where its files are.
    """
    port = free_port()
    configuration = own / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(own=own, port=port, folder=folder))
    program = nginx()
    assert program is not None
    command = [program, "-p", str(own), "-e", str(own / "error.log"), "-c", str(configuration)]
    with running(command, port, why=(own / "error.log").read_text):
        yield port

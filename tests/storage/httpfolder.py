"""A web server of one folder: GET and HEAD, ranges, ETag, If-Match, and no listing."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    has_etag = True

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = self.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            return self._send(404, b"", {})
        data = path.read_bytes()
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {
            "Last-Modified": self.date_time_string(path.stat().st_mtime),
            "Accept-Ranges": "bytes",
            **({"ETag": etag} if self.has_etag else {}),
        }
        if self.has_etag and self.headers.get("If-Match", etag) != etag:
            return self._send(412, b"", headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, data, headers, with_body)
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if start >= len(data):
            return self._send(416, b"", headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._send(206, data[start:stop], headers, with_body)

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


def serve(folder: Path, *, etag: bool = True) -> ThreadingHTTPServer:
    """A running server of `folder`; `shutdown` ends it.

    Args:
        folder: what it hands out.
        etag: whether it says ETags.
    """
    handler = type("Handler", (_Handler,), {"folder": folder, "has_etag": etag})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server

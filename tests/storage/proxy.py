"""A proxy that fails on purpose: it passes requests on to a server, and spoils answers in turn."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# What may happen to one answer.
FAULTS = ("reset", "503", "429", "cut", "short", "stall", "half", "etag", "no etag")
_STALL = 30.0
# What a server of S3's protocol looks for and does not check.
_SIGNED = (
    b"\r\nAuthorization: AWS4-HMAC-SHA256 Credential=me/20260101/eu-west-1/s3/aws4_request, "
    b"SignedHeaders=host, Signature=0\r\n"
)


@dataclass
class Proxy:
    """Passes HTTP on to a server of this machine.

    Attributes:
        upstream: port of the server.
        faults: what happens to the next answers to `spoils`, one each; None: nothing.
        spoils: the method whose answers these are.
        latency: seconds before each request is passed on.
        away: every connection is closed at once.
        signs: requests get a signature of S3's kind in place of what they have.
        met: what has happened, counted; "GET" and "HEAD" are requests that were passed on.
        sent: bytes of bodies that were passed back.
        port: where it listens.
    """

    upstream: int
    faults: deque[str | None] = field(default_factory=deque)
    spoils: str = "GET"
    latency: float = 0.0
    away: bool = False
    signs: bool = False
    met: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    most_at_once: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._ready = threading.Event()
        self._now = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def spoil(self, faults: Iterable[str | None]) -> None:
        """Let these happen to the next answers, in this order."""
        self.faults.extend(faults)

    def close(self) -> None:
        """End it, with all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self.port)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        # Transports close in the next round.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.away and await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if self.away:
            return False
        body = await reader.readexactly(_length(head))
        method = head.split(b" ", 1)[0].decode()
        fault = self.faults.popleft() if method == self.spoils and self.faults else None
        self.met[fault or method] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.latency)
            return await self._spoilt(method, head, body, fault, writer)
        finally:
            self._now -= 1

    async def _spoilt(
        self,
        method: str,
        head: bytes,
        body: bytes,
        fault: str | None,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault in ("503", "429"):
            writer.write(f"HTTP/1.1 {fault} Busy\r\nContent-Length: 4\r\n\r\nbusy".encode())
            await writer.drain()
            return True
        if fault == "stall":
            await asyncio.sleep(_STALL)
            return False
        answer, data = await self._ask(method, head, body)
        half = data[: len(data) // 2]
        if fault == "etag":
            answer = answer.replace(b'ETag: "', b'ETag: "ff')
        elif fault == "no etag":
            answer = re.sub(rb"ETag: [^\r]*\r\n", b"", answer)
        elif fault == "short":
            answer = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(half), answer)
            data = half
        if fault in ("cut", "half"):
            writer.write(answer + half)
            await writer.drain()
            await asyncio.sleep(_STALL if fault == "half" else 0)
            return False
        self.sent += len(data)
        writer.write(answer + data)
        await writer.drain()
        return True

    async def _ask(self, method: str, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            head = re.sub(rb"\r\n[Cc]onnection: [^\r]*", b"", head)
            if self.signs:
                head = re.sub(rb"(?i)\r\nauthorization: [^\r]*", b"", head)
                head = head.replace(b"\r\n", _SIGNED, 1)
            writer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            data = b"" if method == "HEAD" else await reader.read()
        finally:
            writer.close()
        answer = re.sub(rb"(?i)etag:", b"ETag:", answer)
        answer = re.sub(rb"(?i)content-length:", b"Content-Length:", answer)
        return re.sub(rb"(?i)\r\nconnection: close", b"", answer), data


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0

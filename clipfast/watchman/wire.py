"""Messages between guards and hub: a line of JSON each, sent without ever waiting for a peer."""

import json
import socket
from contextlib import suppress
from typing import Any

Message = dict[str, Any]
# A peer that takes nothing is cut off; what is kept for it must not grow for ever.
_MOST_KEPT = 4 << 20
_CHUNK = 1 << 16


class Line:
    """One end of a connection.

    Args:
        connection: a connected stream socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        with suppress(OSError):
            # Not for a pair of local sockets.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._kept = bytearray()
        self.is_open = True

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Hand over a message; it goes as far as the peer takes it, and on with the next call."""
        if self.is_open and len(self._kept) < _MOST_KEPT:
            self._kept += json.dumps(message).encode() + b"\n"
            self.flush()

    def flush(self) -> bool:
        """Send what is kept as far as it goes; whether nothing is left."""
        try:
            while self._kept:
                sent = self._socket.send(self._kept[:_CHUNK])
                del self._kept[:sent]
        except BlockingIOError:
            return False
        except OSError:
            self._kept.clear()
        return True

    def receive(self) -> list[Message]:
        """Whole messages that have come; none for ever once ``is_open`` is False.

        Raises:
            ValueError: what has come is no message: the peer is none of ours.
        """
        try:
            while chunk := self._socket.recv(_CHUNK):
                self._received += chunk
                if len(self._received) > _MOST_KEPT:
                    raise ValueError("a line without an end")
            self.is_open = False
        except BlockingIOError:
            pass
        except OSError:
            self.is_open = False
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message that is no object")
        return messages

    def close(self) -> None:
        """End the connection."""
        self.is_open = False
        self._socket.close()

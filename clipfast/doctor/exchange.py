"""What ranks tell each other of what they see: by a store, with a limit on every wait.

No collective is needed for it, so that a rank that fails a check keeps nobody waiting.
"""

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore

_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 10.0


class Exchange:
    """One process, which tells itself.

    Args:
        rank: this process's.
        ranks: those that it can hear of.
    """

    def __init__(self, rank: int, ranks: tuple[int, ...]) -> None:
        self.rank = rank
        self.ranks = ranks
        self._told: dict[str, str] = {}

    @property
    def is_main(self) -> bool:
        """Whether this rank judges and prints."""
        return self.rank == self.ranks[0]

    def post(self, key: str, value: Any) -> None:
        """Leave a value where every rank finds it.

        Args:
            key: a name that is posted once.
            value: what JSON holds.
        """
        self._set(key, json.dumps(value))

    def hear(self, key: str, seconds: float) -> Any:
        """What was posted, or None after so many seconds."""
        deadline = time.monotonic() + seconds
        while not self._has(key):
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_SECONDS)
        return json.loads(self._get(key))

    def collect(self, key: str, seconds: Mapping[int, float]) -> dict[int, Any]:
        """What ranks have posted under ``key/RANK``.

        Args:
            key: of a check.
            seconds: how long to wait for each rank, from now.

        Returns:
            Values by rank; those that did not come are not in it.
        """
        began = time.monotonic()
        found = {}
        for rank, limit in seconds.items():
            left = max(0.0, began + limit - time.monotonic())
            if (value := self.hear(f"{key}/{rank}", left)) is not None:
                found[rank] = value
        return found

    def _set(self, key: str, text: str) -> None:
        self._told[key] = text

    def _get(self, key: str) -> str:
        return self._told[key]

    def _has(self, key: str) -> bool:
        return key in self._told


class StoreExchange(Exchange):
    """Ranks that have met: a connection of its own to the store that rank 0 or torchrun holds."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, tuple(range(world_size)))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        base: Any = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_CONNECT_SECONDS),
        )
        self._store = PrefixStore(f"clipfast-doctor/{attempt}", base)

    def _set(self, key: str, text: str) -> None:
        self._store.set(key, text)

    def _get(self, key: str) -> str:
        return self._store.get(key).decode()

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))

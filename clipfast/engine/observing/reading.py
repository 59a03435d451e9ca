"""What reading from stores took since the row before."""

from clipfast.engine.config import DataConfig
from clipfast.storage import counting, present_cache
from clipfast.storage.paths import scheme_of


class Reading:
    """Counts of this rank, row by row. The rows of a run sum up to all that it read.

    Args:
        data: of the run. Where all of it is on this machine, nothing is said.
    """

    def __init__(self, data: DataConfig) -> None:
        patterns = (*data.train_patterns, *data.eval_sources.values())
        self._is_far = any(scheme_of(pattern) != "file" for pattern in patterns)
        self._has_cache = self._is_far and bool(data.cache)
        self._before = counting.counts()

    def take(self, steps: int) -> tuple[dict[str, float], dict[str, float]]:
        """Figures since the last call.

        Args:
            steps: taken since then.

        Returns:
            Those that are summed over the ranks, and those whose largest counts.
        """
        if not self._is_far:
            return {}, {}
        now = counting.counts()
        since, self._before = now - self._before, now
        sums = {
            "store/bytes": since.bytes,
            "store/requests": since.requests,
            "store/retries": since.retries,
        }
        largest = {"seconds/store": since.seconds / steps}
        if self._has_cache:
            sums |= {"cache/asked": since.asked, "cache/found": since.found}
            sums |= {"cache/fetched": since.copied}
            cache = present_cache()
            largest["cache/bytes"] = float(cache.held()) if cache is not None else 0.0
        return {name: float(value) for name, value in sums.items()}, largest


def with_hit_rate(figures: dict[str, float]) -> dict[str, float]:
    """The share of bytes that copies gave, in the place of the two numbers that it is made of.

    Args:
        figures: of all ranks.
    """
    asked, found = figures.pop("cache/asked", 0.0), figures.pop("cache/found", 0.0)
    return {**figures, "cache/hit_rate": found / asked} if asked else figures

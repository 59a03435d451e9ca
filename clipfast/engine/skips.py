"""Broken samples that a run leaves out: told to all ranks, counted, named once, and limited."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from clipfast.data.batch import TrainingData
from clipfast.data.encoded import Skipped
from clipfast.data.report import Report
from clipfast.data.skipping import too_many
from clipfast.engine.plan import RunPlan
from clipfast.files import explain

# In the folder of a run.
SKIPPED = "skipped.tsv"


class Skips:
    """What every rank has left out so far.

    Args:
        plan: of the run.
        loader: of its data.
    """

    def __init__(self, plan: RunPlan, loader: TrainingData) -> None:
        self._plan = plan
        self._loader = loader
        self._most = plan.config.data.max_errors
        # Those of a run that is resumed were told by it.
        self._told = len(loader.skipped)

    def __len__(self) -> int:
        """Broken samples of all ranks that were told by now."""
        return self._told

    @property
    def wanted(self) -> bool:
        """Whether the run leaves any out."""
        return self._plan.config.data.on_error == "skip"

    def share(self, say: Callable[[str], object]) -> None:
        """Let all ranks know what each has met since; rank 0 names it. A collective.

        Args:
            say: shows a line.

        Raises:
            ValueError: on every rank, where all together have met more than is borne with.
        """
        if not self.wanted or not self._gather(self._loader.skipped[self._told :]):
            return
        found = self._loader.skipped
        fresh, self._told = found[self._told :], len(found)
        if self._plan.process.is_main:
            for each in fresh:
                say(f"left out: {each}")
            self._write(found, say)
        if len(found) > self._most:
            raise ValueError(too_many(found, self._most))

    def lines(self) -> list[str]:
        """For the end of a run."""
        if not self._told:
            return []
        path = self._plan.folder / SKIPPED
        return [f"{self._told:,} broken samples were left out, and others took their place: {path}"]

    def _gather(self, mine: Sequence[Skipped]) -> bool:
        """Teach the loader what any rank has met; whether there was something."""
        world_size = self._plan.process.world_size
        if world_size == 1:
            return bool(mine)
        # A number first: most of the time there is nothing to tell.
        count = torch.tensor(len(mine), device=self._plan.process.device)
        dist.all_reduce(count)
        if not count.item():
            return False
        shares: list[list[Skipped]] = [[] for _ in range(world_size)]
        dist.all_gather_object(shares, list(mine))
        self._loader.learn([each for share in shares for each in share])
        return True

    def _write(self, found: Sequence[Skipped], say: Callable[[str], object]) -> None:
        path = self._plan.folder / SKIPPED
        try:
            with Report(str(path), "shard", "key", "reason") as rows:
                for each in found:
                    rows.row(each.path, each.key, each.reason)
        except OSError as error:
            say(f"not written: {explain(error, path)}")

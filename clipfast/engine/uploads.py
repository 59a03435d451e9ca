"""What a run says and writes of its uploads, and how long it waits for them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint import Chosen
from clipfast.engine.checkpoint.uploading import Sent, Uploading
from clipfast.engine.metrics import Metrics
from clipfast.engine.opening import Opening
from clipfast.engine.plan import RunPlan
from clipfast.engine.runfolder import METRICS, RECORD

Say = Callable[[str], object]
# A run that is asked to leave gives a store up that takes no byte for so many seconds: whoever
# asked may kill it soon.
_LEAVING_SECONDS = 15.0
# So long rank 0 takes to send what the run has written down, at its very end.
_RECORDS_SECONDS = 20.0


class Uploads:
    """The uploads of a run; nothing of it without ``--checkpoint.upload``. A store that fails costs
    the upload, not the run.

    Args:
        plan: of the run.
        opening: of the run, with its checkpoints and its store.
    """

    def __init__(self, plan: RunPlan, opening: Opening) -> None:
        self._plan = plan
        self._saving = opening.checkpoints.saving
        self._store = opening.store
        self._uploading: Uploading | None = None
        self._has_told = False
        self._step = 0
        self._sent, self._bytes, self._seconds, self._failures = 0, 0, 0.0, 0
        if opening.store is not None:
            records = {name: plan.folder / name for name in (RECORD, METRICS)}
            self._uploading = Uploading(
                opening.store, opening.checkpoints.folder, plan.process, records
            )

    @property
    def progress(self) -> int:
        """Of this rank, for ``Requests.agree``."""
        return 0 if self._uploading is None else self._uploading.progress

    def catch_up(self, chosen: Chosen | None) -> None:
        """Send the checkpoint that the run goes on from, where it is not there yet. A collective.

        Args:
            chosen: of the opening.
        """
        if self._uploading is None or self._store is None or chosen is None:
            return
        store, process = self._store, self._plan.process
        own = chosen.path.parent == self._plan.folder / "checkpoints"
        if not own or from_main(process, lambda: store.has(chosen.path)):
            return
        names = sorted(chosen.manifest.files)[process.rank :: process.world_size]
        self._uploading.begin(chosen.path, {name: chosen.manifest.files[name] for name in names})

    def begin(self, path: Path, say: Say) -> None:
        """Send a checkpoint that stands. A collective.

        Args:
            path: of its folder.
            say: shows a line.
        """
        if self._uploading is None:
            return
        left_out = self._uploading.begin(path, self._saving.mine)
        if left_out and not self._has_told:
            self._has_told = True
            say(
                f"{left_out} is not uploaded: {path.name} stands before its turn came. The store "
                "takes longer than the steps between checkpoints, and gets the newest"
            )

    def go_on(self, least: int, metrics: Metrics, step: int) -> None:
        """Note what has come to its end. A collective.

        Args:
            least: the smallest ``progress`` of any rank, the same on every rank.
            metrics: of the run.
            step: optimizer steps taken.
        """
        self._step = step
        if self._uploading is not None:
            self._note(self._uploading.advance(least), metrics)

    def send_final(self, path: Path) -> None:
        """Send the final weights.

        Args:
            path: of the file.
        """
        if self._uploading is not None and self._plan.process.is_main:
            self._uploading.send({path.name: path}, path.name)

    def finish(self, metrics: Metrics, *, leaves: bool) -> list[str]:
        """Wait for all that is on its way. A collective.

        Args:
            metrics: of the run.
            leaves: the run was asked to stop.

        Returns:
            A line for each thing that is not in the store, the same on every rank.
        """
        if self._uploading is None:
            return []
        patience = self._plan.config.data.store.patience + _LEAVING_SECONDS
        if waits := self._uploading.unsent:
            metrics.say(f"Uploading {', '.join(waits)} to {self._where}")
        ended = self._uploading.finish(_LEAVING_SECONDS if leaves else patience)
        return self._note(ended, metrics)

    def leave(self, say: Say, *, quick: bool) -> None:
        """Send what the run has written down, and end. No collective.

        Args:
            say: shows a line.
            quick: the run has failed, and other ranks may wait for this one's end.
        """
        if self._uploading is None:
            return
        for sent in self._uploading.leave(0.0 if quick else _RECORDS_SECONDS):
            if self._plan.process.is_main:
                say(_not_sent(sent))
        self._uploading = None

    def summary(self) -> list[str]:
        """What was sent, for a person."""
        if self._uploading is None or not (self._sent or self._failures):
            return []
        failed = f"; {self._failures} failed" if self._failures else ""
        return [
            f"uploaded to {self._where}: {self._sent} in {self._seconds:.1f} s, "
            f"{self._bytes / 1e9:.3f} GB{failed}"
        ]

    @property
    def _where(self) -> str:
        return self._store.folder if self._store is not None else ""

    def _note(self, ended: Iterable[Sent], metrics: Metrics) -> list[str]:
        lines = []
        for sent in ended:
            if sent.error:
                self._failures += 1
                lines.append(_not_sent(sent))
                metrics.say(lines[-1])
            else:
                self._sent += 1
                self._bytes += sent.size
                self._seconds += sent.seconds
            values = {"upload/bytes": self._bytes, "upload/failures": self._failures}
            metrics.log(self._step, {**values, "seconds/upload": sent.seconds})
        return lines


def _not_sent(sent: Sent) -> str:
    return (
        f"NOT UPLOADED: {sent.what}: {sent.error}. It is here, and --resume latest or the next "
        "checkpoint tries anew"
    )

"""Why samples are missing, told shortly: each kind of reason with its number and one example."""

import re
from collections.abc import Iterable, Iterator, Sequence

from clipfast.data.report import INDEX_REPORT, printable, read_rows
from clipfast.storage.paths import join, split

_SHOWN = 5


class Reasons:
    """Counts reasons that differ in numbers and names only as one kind."""

    def __init__(self, reasons: Iterable[tuple[str, str]] = ()) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}
        for source, reason in reasons:
            self.add(source, reason)

    def add(self, source: str, reason: str) -> None:
        """Count a sample.

        Args:
            source: which one, for the example.
            reason: why it was left out.
        """
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|[^\s:]*\d[^\s:]*|\S+\.\w+", "#", reason)
        count, example = self._kinds.get(kind, (0, printable(f"{reason} ({source})")))
        self._kinds[kind] = count + 1, example

    def lines(self) -> Iterator[str]:
        """The commonest kinds, one a line."""
        ordered = sorted(self._kinds.values(), key=lambda kind: -kind[0])
        for count, example in ordered[:_SHOWN]:
            yield f"    {count:,} x {example}"
        if rest := ordered[_SHOWN:]:
            yield f"    {sum(count for count, _ in rest):,} for {len(rest)} other reasons"

    def after(self, sentence: str) -> str:
        """`sentence`, with the kinds below it where there are any."""
        return "\n".join([sentence, *self.lines()])


def reasons_of(shards: Sequence[str], reports: Sequence[str] = ()) -> Reasons:
    """What the reports of the indexer say of some shards.

    Args:
        shards: their paths.
        reports: where the reports are; default beside the shards.
    """
    folders = dict.fromkeys(split(shard)[0] for shard in shards)
    reports = reports or [join(folder, INDEX_REPORT) for folder in folders]
    # By name alone: the indexer may have been told another path to the same folder.
    names = {printable(split(shard)[1]) for shard in shards}
    found = Reasons()
    for report in reports:
        for line in read_rows(report):
            fields = line.rstrip("\n").split("\t")
            if len(fields) == 3 and split(fields[0])[1] in names:
                shard, key, reason = fields
                found.add(f"{key} of {shard}" if key else shard, reason)
    return found

"""Where each sample of a shard lies: from its index, or from a walk over its headers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clipfast.data.fields import FIELDS, Entry, Fields
from clipfast.data.indexfile import (
    has_index,
    lines_of,
    read_columns,
    read_count,
    read_identity,
    read_keys,
)
from clipfast.data.indexmark import digest_of_lines
from clipfast.data.reasons import Reasons
from clipfast.data.report import printable
from clipfast.data.scan import Contents, contents, scan
from clipfast.data.selection import ShardChoice

_log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True, eq=False)
class Table:
    """The samples of one shard, 25 bytes each; keys are read again when asked for.

    Attributes:
        shard: path of the tar.
        image_offset: [N] int64, bytes from the start of the tar.
        image_size: [N] int32, bytes.
        caption_offset: [N] int64; 0 where the tar has no caption.
        caption_size: [N] int32.
        extension: [N] uint8, position in `Fields.images`.
        caption: extension of the members that hold the captions.
        left_out: samples without image or caption that a scan met; 0 with an index.
        fields: which members were taken for image and caption.
        checked: an index has left out what is not fit for training.
        mark: see `Identity`.
        rows: [N] int64, which samples of the shard these are; None: all.
        chosen: [N] int32, which caption of each a selection names, -1 for none; None: of none.
    """

    shard: str
    image_offset: np.ndarray
    image_size: np.ndarray
    caption_offset: np.ndarray
    caption_size: np.ndarray
    extension: np.ndarray
    caption: str
    left_out: int = 0
    fields: Fields = FIELDS
    checked: bool = False
    mark: str = ""
    rows: np.ndarray | None = None
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_offset)

    def keys(self) -> list[str]:
        """Keys of all samples, in order. Reads the index or the tar headers again."""
        if has_index(self.shard):
            keys = read_keys(self.shard, self.fields)
        else:
            keys = [sample.key for sample in scan(self.shard, self.fields) if sample.entry]
        return keys if self.rows is None else [keys[row] for row in self.rows.tolist()]

    def take(self, choice: ShardChoice) -> "Table":
        """The table of what a selection keeps.

        Args:
            choice: of this shard.

        Raises:
            ValueError: it was made of another index.
        """
        if (choice.samples, choice.mark) != (len(self), self.mark):
            raise ValueError(
                f"shard {self.shard} or its index has changed since its selection was looked up: "
                f"it has {len(self):,} samples, and had {choice.samples:,}. Put the old one back"
            )
        return replace(self.only(choice.rows()), chosen=choice.chosen())

    def only(self, rows: np.ndarray) -> "Table":
        """The table of some rows.

        Args:
            rows: rising.
        """
        return replace(
            self,
            image_offset=self.image_offset[rows],
            image_size=self.image_size[rows],
            caption_offset=self.caption_offset[rows],
            caption_size=self.caption_size[rows],
            extension=self.extension[rows],
            rows=rows if self.rows is None else self.rows[rows],
            chosen=None if self.chosen is None else self.chosen[rows],
        )

    def entry(self, i: int) -> Entry:
        """Sample `i` with its key; for messages and tests, not for the hot path."""
        return Entry(
            self.keys()[i],
            self.fields.images[self.extension[i]],
            int(self.image_offset[i]),
            int(self.image_size[i]),
            int(self.caption_offset[i]),
            int(self.caption_size[i]),
            self.caption if self.caption_offset[i] else "",
        )


def _table(shard: str, rows: Sequence[Entry], left_out: int, fields: Fields) -> Table:
    def column(name: str, dtype: type) -> np.ndarray:
        return np.fromiter((getattr(row, name) for row in rows), dtype, len(rows))

    return Table(
        shard,
        column("image_offset", np.int64),
        column("image_size", np.int32),
        column("caption_offset", np.int64),
        column("caption_size", np.int32),
        np.fromiter((fields.code(row.extension) for row in rows), np.uint8, len(rows)),
        next((row.caption for row in rows if row.caption), fields.caption_extensions[0]),
        left_out,
        fields,
        mark=digest_of_lines(*lines_of(rows, fields)),
    )


def read_table(shard: str, fields: Fields = FIELDS) -> Table:
    """Where the samples of `shard` lie: from its index if it has one, else from a scan.

    Args:
        shard: path of a plain tar.
        fields: which members are image and caption.

    Returns:
        The table of complete samples; a scan logs how many incomplete ones it left out.

    Raises:
        ValueError: a tar that is empty, truncated, compressed or has no complete sample, or an
            index that does not fit it.
    """
    if has_index(shard):
        columns = read_columns(shard, fields)
        return Table(
            shard,
            columns.image_offset,
            columns.image_size,
            columns.caption_offset,
            columns.caption_size,
            columns.extension,
            columns.caption,
            fields=fields,
            checked=True,
            mark=columns.mark,
        )
    found = contents(shard, fields)
    samples = found.samples
    rows = [sample.entry for sample in samples if sample.entry]
    left_out = len(samples) - len(rows)
    if not rows:
        why = Reasons((sample.key, sample.problem) for sample in samples)
        raise ValueError(
            why.after(
                f"shard {shard!r} has no complete sample among {len(samples)}; each needs "
                f"{fields.wants()}, side by side"
                + ("" if samples else ". It holds no file with an extension")
            )
        )
    _tell_once(shard, found)
    return _table(shard, rows, left_out, fields)


def _tell_once(shard: str, found: Contents) -> None:
    """Log what a scan left out; a shard is scanned for its number, and again to be read."""
    if shard in _told:
        return
    _told.add(shard)
    for note in found.notes:
        _log.warning("%s: %s", printable(shard), note)
    if found.left_out:
        name, reason = found.left_out[0]
        _log.warning(
            "%s: %d members are in no sample, such as %s (%s)",
            printable(shard),
            len(found.left_out),
            printable(name),
            printable(reason),
        )
    incomplete = [sample for sample in found.samples if not sample.entry]
    if incomplete:
        why = Reasons((f"sample '{sample.key}'", sample.problem) for sample in incomplete)
        _log.warning(
            "%s",
            why.after(
                f"{printable(shard)}: {len(incomplete)} samples without image or caption are left "
                "out:"
            ),
        )


def count(shard: str, fields: Fields = FIELDS) -> int:
    """Number of samples of `shard`: the first line of its index, or a scan. Equals len(table)."""
    return read_count(shard) if has_index(shard) else len(read_table(shard, fields))


@dataclass(frozen=True)
class Identity:
    """What a shard's table is known by.

    Attributes:
        samples: N.
        mark: digest of the lines of its index, or of those that an index of all its complete
            samples would have.
    """

    samples: int
    mark: str


def identify(shard: str, fields: Fields = FIELDS) -> Identity:
    """What `shard`'s table is known by: from the first line of its index, or by a scan.

    Args:
        shard: path of a plain tar.
        fields: which members are image and caption.

    Raises:
        ValueError: see ``read_table``.
    """
    if has_index(shard):
        return Identity(*read_identity(shard))
    table = read_table(shard, fields)
    return Identity(len(table), table.mark)

"""Walk a shard and group its members into samples."""

from collections.abc import Iterator

from clipfast.data.fields import FIELDS, Fields, Member, Sample
from clipfast.data.tarwalk import walk


def scan(shard: str, fields: Fields = FIELDS) -> Iterator[Sample]:
    """Walk the tar headers of `shard` and group its members into samples.

    The rule is webdataset's: the key is the path up to the first dot of the basename, the members
    of a sample are adjacent, hidden and dotless files are passed over.

    Args:
        shard: path of a plain tar.
        fields: which members are image and caption.

    Yields:
        Every sample, complete or not, in the order of the tar.

    Raises:
        ValueError: the file is empty, truncated, compressed, or no tar.
    """
    key: str | None = None
    members: list[Member] = []
    for name, offset, size in walk(shard):
        parts = fields.split(name)
        if parts is None:
            continue
        if parts[0] != key and key is not None:
            yield fields.sample(key, members)
            members = []
        key = parts[0]
        members.append((parts[1], offset, size))
    if key is not None:
        yield fields.sample(key, members)

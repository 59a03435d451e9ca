"""Write samples into numbered shards."""

from clipfast.data.fields import FIELDS, Entry, Fields
from clipfast.data.indexfile import index_path, write_index
from clipfast.data.tarheader import BLOCK, tar_header
from clipfast.storage import Writer, storage_of
from clipfast.storage.paths import join

# tar programs write whole records of 20 blocks.
_RECORD = 20 * BLOCK


class ShardWriter:
    """Writes samples into ``NNNNN.tar``; each shard appears whole, with its index, or not at all.

    Args:
        folder: where the shards go.
        shard_size: samples per shard.
        fields: names of the members.

    Raises:
        ValueError: `shard_size` is below 1.
    """

    def __init__(self, folder: str, shard_size: int, fields: Fields = FIELDS) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.folder, self.shard_size, self.fields = folder, shard_size, fields
        self.shards = self.samples = 0
        self._tar: Writer | None = None
        # Bytes of the current shard so far.
        self._end = 0
        self._entries: list[Entry] = []

    def _path(self) -> str:
        return join(self.folder, f"{self.shards:05d}.tar")

    def add(self, image: bytes, extension: str, caption: bytes) -> None:
        """Append one sample."""
        if self._tar is None:
            self._tar, self._end = storage_of(self.folder).create(self._path()), 0
        key = f"{self.samples:09d}"
        image_name, caption_name = self.fields.names(key, extension)
        image_offset = self._member(image_name, image)
        caption_offset = self._member(caption_name, caption)
        self._entries.append(
            Entry(
                key,
                extension,
                image_offset,
                len(image),
                caption_offset,
                len(caption),
                self.fields.caption_extensions[0],
            )
        )
        self.samples += 1
        if len(self._entries) == self.shard_size:
            self.finish()

    def _member(self, name: str, data: bytes) -> int:
        offset = self._end + BLOCK
        self._write(tar_header(name, len(data)))
        self._write(data + bytes(-len(data) % BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        assert self._tar is not None
        self._tar.write(data)
        self._end += len(data)

    def finish(self) -> None:
        """Close the current shard, if any, and put it in place."""
        if self._tar is None:
            return
        self._write(bytes(2 * BLOCK + -(self._end + 2 * BLOCK) % _RECORD))
        # A crash between the steps leaves a shard without index, which still reads; an old index
        # beside a new tar would not.
        storage_of(self.folder).remove(index_path(self._path()))
        self._tar.commit()
        self._tar = None
        write_index(self._path(), self._entries, self.fields)
        self._entries = []
        self.shards += 1

    def abort(self) -> None:
        """Drop an unfinished shard."""
        if self._tar is not None:
            self._tar.abort()
            self._tar = None

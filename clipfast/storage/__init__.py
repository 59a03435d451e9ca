"""Where shards, indexes and reports are: one `Storage` per scheme of a path.

A path without a scheme is a local file (`FileStorage`). ``s3 gs az http https`` are read through
obstore (`ObjectStorage`), other schemes through fsspec where it knows them (`FsspecStorage`).
Another place needs a subclass of `Storage` and one line:

    register("mine", MyStorage())

Then ``mine://...`` works wherever a path does: patterns, index, pack and the loaders. All other
modules of `clipfast.data` reach bytes through `storage_of`.
"""

from clipfast.storage.base import Listed, Reader, Stat, Storage, Writer
from clipfast.storage.cache import Cache
from clipfast.storage.clients import OBJECT_SCHEMES, has_obstore
from clipfast.storage.elsewhere import FsspecStorage, elsewhere
from clipfast.storage.local import FileStorage
from clipfast.storage.objects import ObjectStorage
from clipfast.storage.options import StoreOptions
from clipfast.storage.paths import scheme_of

__all__ = [
    "Cache",
    "FileStorage",
    "FsspecStorage",
    "Listed",
    "ObjectStorage",
    "Reader",
    "Stat",
    "Storage",
    "StoreOptions",
    "Writer",
    "configure",
    "present_cache",
    "register",
    "register_all",
    "registered",
    "storage_of",
]

_storages: dict[str, Storage] = {"file": FileStorage()}
_options = StoreOptions()
_cache: Cache | None = None


def register(scheme: str, storage: Storage) -> None:
    """Let paths that begin with ``scheme://`` reach `storage`.

    Args:
        scheme: letters, digits, ``+ . -``, in any case; an earlier storage of it is replaced.
        storage: what holds the objects.

    Raises:
        ValueError: the scheme is malformed.
    """
    if scheme_of(f"{scheme}://") != scheme.lower():
        raise ValueError(f"expected a scheme such as 's3', got {scheme!r}; leave out the '://'")
    _storages[scheme.lower()] = storage


def configure(options: StoreOptions, cache: Cache | None = None) -> None:
    """How stores are reached from now on. Storages that were registered by hand stay.

    Args:
        options: of s3, gs, az, http and https; of other schemes what concerns waiting.
        cache: where copies of their shards are; None: nowhere.
    """
    global _options, _cache
    _options, _cache = options, cache
    for scheme, storage in list(_storages.items()):
        if isinstance(storage, (ObjectStorage, FsspecStorage)):
            del _storages[scheme]


def present_cache() -> Cache | None:
    """Where copies of shards are; see `configure`."""
    return _cache


def registered() -> dict[str, Storage]:
    """All storages by scheme; what a worker process gets."""
    return dict(_storages)


def register_all(storages: dict[str, Storage]) -> None:
    """Register what `registered` gave in another process."""
    for scheme, storage in storages.items():
        register(scheme, storage)


def storage_of(path: str) -> Storage:
    """The storage that holds `path`.

    Raises:
        ValueError: nobody registered its scheme, or what reads it is not installed.
    """
    scheme = scheme_of(path)
    storage = _storages.get(scheme)
    if storage is not None:
        return storage
    if scheme not in OBJECT_SCHEMES:
        found = elsewhere(scheme, _options, _cache)
        if found is None:
            raise ValueError(
                f"{path!r}: '{scheme}://' is not read, because samples are fetched in any "
                "order and no storage of that scheme is registered, nor does fsspec know it (pip "
                "install fsspec, where it is not installed); copy the shards to a local disk or "
                "mount the store and give that path, or clipfast.storage.register one"
            )
        return _storages.setdefault(scheme, found)
    if not has_obstore():
        raise ValueError(
            f"{path!r}: {scheme}:// is read by obstore, which is not installed: "
            "pip install 'clipfast[stores]'; or mount the store and give that path"
        )
    return _storages.setdefault(scheme, ObjectStorage(scheme, _options, _cache))

"""The name that storages had in 0.1 and 0.2. They are in `clipfast.storage` now."""

from clipfast.storage import (
    FileStorage,
    Listed,
    Reader,
    Storage,
    Writer,
    register,
    register_all,
    registered,
    storage_of,
)

__all__ = [
    "FileStorage",
    "Listed",
    "Reader",
    "Storage",
    "Writer",
    "register",
    "register_all",
    "registered",
    "storage_of",
]

"""obstore's clients: one per bucket, with the credentials that the cloud's own tools would take."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any

from clipfast.storage.options import StoreOptions

OBJECT_SCHEMES = ("s3", "gs", "az", "http", "https")
# Seconds without a byte after which an attempt has failed; obstore waits for ever by default.
_CONNECT, _READ, _WHOLE = "5s", "20s", "600s"

# Of one part of a large object, beside the attempts at the whole.
_PART_RETRIES = 5

_lock = Lock()
_clients: dict[tuple[str, StoreOptions, bool], Any] = {}
_born: int | None = None


@dataclass(frozen=True)
class Place:
    """An object's path in two parts.

    Attributes:
        root: scheme and bucket, container or host.
        key: the object in it; "" for the root itself.
    """

    root: str
    key: str


def place_of(path: str) -> Place:
    """Where an object is.

    Raises:
        ValueError: no bucket, or a secret in the path.
    """
    scheme, _, rest = path.partition("://")
    scheme = scheme.lower()
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise ValueError(
            f"{scheme}://...@{bucket.rpartition('@')[2]}: a path holds no credentials, because "
            "logs and records keep paths. Give them by the environment"
        )
    if not bucket:
        raise ValueError(f"{path!r} names no bucket or host; write {scheme}://NAME/FOLDER/*.tar")
    return Place(f"{scheme}://{bucket}", key.strip("/"))


def has_obstore() -> bool:
    """Whether object stores can be read here."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        return False
    return True


def client_of(root: str, options: StoreOptions, *, retries: bool = False) -> Any:
    """The client of a bucket, made at its first use.

    Args:
        root: of the bucket, such as s3://NAME.
        options: how it is reached.
        retries: it asks again by itself, as for the parts of a large object.

    Raises:
        RuntimeError: this process was forked from one that had clients. Their threads are not here,
            and a request would wait for ever.
    """
    global _born
    with _lock:
        if _born not in (None, os.getpid()):
            raise RuntimeError(
                f"{root}: this process was forked from one that reads stores, and cannot read them "
                "itself. Start processes with multiprocessing's 'spawn'"
            )
        if (root, options, retries) not in _clients:
            _clients[root, options, retries] = _make(root, options, retries)
            _born = os.getpid()
        return _clients[root, options, retries]


def _make(root: str, options: StoreOptions, retries: bool) -> Any:
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    scheme, _, bucket = root.partition("://")
    common: dict[str, Any] = {
        "client_options": {
            "allow_http": True,
            "connect_timeout": _CONNECT,
            "read_timeout": _READ,
            "timeout": _WHOLE,
        },
        # Attempts are counted, spaced and told by `clipfast.storage.patience`.
        "retry_config": {
            "max_retries": _PART_RETRIES if retries else 0,
            "retry_timeout": timedelta(seconds=60),
        },
    }
    if scheme in ("http", "https"):
        return HTTPStore.from_url(root, **common)
    if options.anonymous:
        common["skip_signature"] = True
    if scheme == "gs":
        if options.endpoint:
            common["base_url"] = options.endpoint
        return GCSStore(bucket, **common)
    if options.endpoint:
        common["endpoint"] = options.endpoint
    if scheme == "az":
        return AzureStore(bucket, **common)
    # A bucket may hold dots, which no certificate of a subdomain covers; every store takes paths.
    common["virtual_hosted_style_request"] = False
    if options.region:
        common["region"] = options.region
    elif not {"AWS_REGION", "AWS_DEFAULT_REGION"} & set(os.environ):
        common["region"] = "us-east-1"
    if not options.anonymous and (provider := _profile()) is not None:
        common["credential_provider"] = provider
    return S3Store(bucket, **common)


def _profile() -> Any:
    """What reads ``~/.aws``, which obstore does not; None where the environment says enough.

    Raises:
        ValueError: a profile is asked for, and boto3 is not installed.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    names = {"AWS_PROFILE"} & set(os.environ)
    folder = Path.home() / ".aws"
    if not names and not any((folder / name).is_file() for name in ("credentials", "config")):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if not names:
            return None
        raise ValueError(
            "AWS_PROFILE names a profile, and profiles are read by boto3, which is not installed: "
            "pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    return Boto3CredentialProvider()

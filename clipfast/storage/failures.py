"""What can go wrong with a store: what passes, what does not, and what each says."""

from __future__ import annotations

import re


class PassingError(Exception):
    """One attempt failed, and another one may not: a store that is busy, slow or away."""


class UnreachableError(OSError):
    """A store gave no answer for as long as the run was to wait for one."""


class RefusedError(PermissionError):
    """A store answers, and says no. Asking again gives the same answer."""


class ChangedError(ValueError):
    """An object is not the one that was opened: bytes of two objects would be mixed."""


# What stands deep in the text of an error, and what it says to a person.
_CAUSES = {
    "Connection refused": "connection refused",
    "ConnectionRefused": "connection refused",
    "dns error": "no such host",
    "TimedOut": "no bytes for too long",
    "IncompleteBody": "the answer was cut",
    "IncompleteMessage": "connection closed",
    "end of file before message length reached": "the answer was cut",
    "ConnectionReset": "connection reset",
    "UnexpectedEof": "the answer was cut",
}
_STATUS = re.compile(r"status code: (\d{3})( [A-Za-z ]+)?")
# Where clouds hand out credentials to their own machines.
_INSTANCE = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")


def reason_of(error: BaseException) -> str:
    """What a client's error says, in few words: its texts are pages long."""
    text = str(error)
    if found := _STATUS.search(text):
        return f"{found[1]}{found[2] or ''}".strip()
    for part, words in _CAUSES.items():
        if part in text:
            return words
    return text.partition("\n")[0].rpartition(" - ")[2][:200] or type(error).__name__


def status_of(error: BaseException) -> int:
    """The HTTP status in a client's error; 0 where there is none."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def asks_for_credentials(error: BaseException) -> bool:
    """Whether it was no object that could not be reached, but what hands out credentials."""
    return any(place in str(error) for place in _INSTANCE)


def changed(path: str, what: str, was: object, now: object) -> ChangedError:
    """The error for an object that is another one now."""
    return ChangedError(
        f"shard {path} has changed while it is read: its {what} was {was}, is {now}. Put the old "
        f"one back, or index it anew (python -m clipfast.data.index {path} --force) and start a "
        "new run"
    )


def refused(path: str, why: str) -> RefusedError:
    """The error for a store that says no, with what each cloud wants to hear."""
    scheme, _, rest = path.partition("://")
    root = f"{scheme}://{rest.partition('/')[0]}"
    return RefusedError(f"{root}: {why}. {_CREDENTIALS.get(scheme, _NO_CREDENTIALS)}")


_CREDENTIALS = {
    "s3": "Asked were the environment, web identity, container and instance. Set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass --data.store.anonymous for a public "
    "bucket",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or pass --data.store.anonymous for a public bucket",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or pass "
    "--data.store.anonymous for a public container",
}
_NO_CREDENTIALS = "See what the server says to 'curl -I' of a shard"

"""Writes that may fail: said, and tried again where nobody comes back to them."""

from collections.abc import Callable

from clipfast.engine.requests import RETRY_SECONDS, Request, Requests

# At the end of a run: ten minutes.
_INSISTENT = 11


def attempt(
    act: Callable[[], object],
    words: str,
    say: Callable[[str], object],
    requests: Requests | None = None,
) -> str:
    """Try to write something, on every rank; say what fails.

    Args:
        act: a collective that raises OSError on every rank or on none.
        words: what a failure means.
        say: shows a line.
        requests: given, it is tried again every minute, for ten minutes or until a signal.

    Returns:
        What was said last; empty where it was written.
    """
    line = ""
    for attempts_left in reversed(range(_INSISTENT if requests else 1)):
        try:
            act()
            return ""
        except OSError as error:
            line = f"{words}: {error}"
        say(line + ("; trying again in a minute" if attempts_left else ""))
        if requests and attempts_left and requests.wait(RETRY_SECONDS) == Request.STOP:
            break
    return line

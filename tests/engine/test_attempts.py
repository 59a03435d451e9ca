"""What cannot be written is said, and tried again where it is the last chance."""

from clipfast.engine import attempts
from clipfast.engine.attempts import attempt
from clipfast.engine.requests import Request


class Waiting:
    """Requests whose minutes pass at once."""

    def __init__(self, *answers: Request) -> None:
        self.answers = list(answers)
        self.waited = 0.0

    def wait(self, seconds: float) -> Request:
        self.waited += seconds
        return self.answers.pop(0) if self.answers else Request.GO_ON


def failing(times: int):
    left = [times]

    def act() -> None:
        if left[0]:
            left[0] -= 1
            raise OSError("a/b: No space left on device")

    return act


def test_attempt_that_fails_is_said_and_costs_no_more():
    said = []
    line = attempt(failing(1), "NOT SAVED", said.append)
    assert said == [line] == ["NOT SAVED: a/b: No space left on device"]
    assert attempt(failing(0), "NOT SAVED", said.append) == ""


def test_attempt_insists_until_there_is_room_for_ten_minutes_or_to_a_signal():
    said, waiting = [], Waiting()
    assert attempt(failing(3), "LOST", said.append, waiting) == ""
    assert len(said) == 3
    assert said[0].endswith("; trying again in a minute")
    waiting = Waiting()
    assert attempt(failing(99), "LOST", said.append, waiting) == said[-1]
    assert waiting.waited == (attempts._INSISTENT - 1) * attempts.RETRY_SECONDS == 600
    stopped = Waiting(Request.GO_ON, Request.STOP)
    assert attempt(failing(99), "LOST", said.append, stopped).startswith("LOST")
    assert stopped.waited == 2 * attempts.RETRY_SECONDS

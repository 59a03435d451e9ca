"""All checks in turn, on every rank; rank 0 judges and says what it finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, failure, ranks_in_words, warning
from clipfast.doctor.limited import HangError, LimitedCalls
from clipfast.doctor.situation import Situation

# Ranks run ahead of each other by so much at most, where all is well.
_APART_SECONDS = 10.0
# Rank 0 waits for others before it lets a rank go on: for each of several that are lost, once.
_VERDICT_SECONDS = 300.0


class RankZeroLostError(Exception):
    """Rank 0 does not answer any more."""


class Examination:
    """The checks of one rank.

    Args:
        situation: of this rank.
        say: shows a finding; called on rank 0.
    """

    def __init__(self, situation: Situation, say: Callable[[Finding], object]) -> None:
        self.findings: list[Finding] = []
        self.seen: dict[str, dict[int, Any]] = {}
        self._situation = situation
        self._exchange = situation.exchange
        self._say = say
        self._calls = LimitedCalls()
        self._lost: set[int] = set()
        # The collective check that left ranks waiting in a collective.
        self._broken_by = ""

    def add(self, check: str, findings: Sequence[Finding]) -> None:
        """Take what was found, and say it."""
        for finding in findings:
            named = replace(finding, check=check)
            self.findings.append(named)
            self._say(named)

    def run(self, checks: Sequence[Check]) -> int:
        """Look at everything.

        Returns:
            The exit status, the same on every rank: 1 where there was a failure.

        Raises:
            RankZeroLostError: it is gone.
        """
        for check in checks:
            if check.terms is not None and not self._may_enter(check, check.terms):
                continue
            answer = self._answer(check)
            self._exchange.post(f"seen/{check.name}/{self._exchange.rank}", answer)
            if self._exchange.is_main:
                self._judge(check)
        return self._agree_on_status()

    def _answer(self, check: Check) -> dict[str, Any]:
        try:
            return {"seen": self._calls.call(lambda: check.look(self._situation), check.limit)}
        except HangError:
            return {"hangs": f"no answer within {check.limit:.0f} s"}
        except Exception as error:
            return {"crashes": described(error)}

    def _may_enter(self, check: Check, terms: Callable[[Situation], Seen]) -> bool:
        """Whether every rank is there and would enter the check with the same values."""
        exchange = self._exchange
        try:
            mine = terms(self._situation)
        except Exception as error:
            mine = {"refused": described(error)}
        exchange.post(f"terms/{check.name}/{exchange.rank}", mine)
        if exchange.is_main:
            found = self._collect(f"terms/{check.name}", _APART_SECONDS)
            reasons = self._reasons_against(found)
            self.add(check.name, reasons)
            exchange.post(f"enter/{check.name}", {"enter": not reasons})
        verdict = exchange.hear(f"enter/{check.name}", _VERDICT_SECONDS)
        if verdict is None:
            raise RankZeroLostError(f"rank 0 said nothing for {_VERDICT_SECONDS:.0f} s")
        return bool(verdict["enter"])

    def _reasons_against(self, terms: Mapping[int, Seen]) -> list[Finding]:
        if self._lost:
            return [warning("not looked at: ranks are lost", "See above", sorted(self._lost))]
        if self._broken_by:
            why = f"not looked at: check {self._broken_by} left ranks waiting for each other"
            return [warning(why, "See above")]
        refused = {rank: each["refused"] for rank, each in terms.items() if "refused" in each}
        if refused:
            first = next(iter(refused.values()))
            return [warning(f"not looked at: {first}", "See above", sorted(refused))]
        differing = differences(terms)
        remedy = (
            "Every rank has to bring the same, else they wait for each other or mix up their "
            "data. Start all of them with one command line and one version"
        )
        return [failure(text, remedy, ranks) for text, ranks in differing]

    def _judge(self, check: Check) -> None:
        answers = self._collect(f"seen/{check.name}", check.limit + _APART_SECONDS)
        self.seen[check.name] = answers
        good = {rank: each["seen"] for rank, each in answers.items() if "seen" in each}
        found: list[Finding] = []
        for kind in ("crashes", "hangs"):
            reasons: dict[str, list[int]] = {}
            for rank, each in answers.items():
                if kind in each:
                    reasons.setdefault(each[kind], []).append(rank)
            found += [
                failure(f"the check {kind}: {why}", _REMEDIES[kind], ranks)
                for why, ranks in reasons.items()
            ]
        if found and check.terms is not None:
            self._broken_by = check.name
        if good and not (found and check.terms is not None):
            try:
                found += check.judge(self._situation, good)
            except Exception as error:
                found.append(
                    failure(f"the check crashes: {described(error)}", _REMEDIES["crashes"])
                )
        self.add(check.name, found)

    def _collect(self, key: str, seconds: float) -> dict[int, Any]:
        present = [rank for rank in self._exchange.ranks if rank not in self._lost]
        answers = self._exchange.collect(key, dict.fromkeys(present, seconds))
        silent = [rank for rank in present if rank not in answers]
        if silent:
            self._lost.update(silent)
            self.add(
                key.partition("/")[2],
                [
                    failure(
                        f"{ranks_in_words(silent)} of {len(self._exchange.ranks)} said nothing "
                        "more: ended or hangs",
                        "Look at what they printed, and for the out-of-memory killer (dmesg)",
                        silent,
                    )
                ],
            )
        return answers

    def _agree_on_status(self) -> int:
        exchange = self._exchange
        if exchange.is_main:
            status = int(any(finding.level == "failure" for finding in self.findings))
            exchange.post("status", status)
            return status
        status = exchange.hear("status", _VERDICT_SECONDS)
        if status is None:
            raise RankZeroLostError(f"rank 0 said nothing for {_VERDICT_SECONDS:.0f} s")
        return int(status)


_REMEDIES = {
    "crashes": "The traceback is in the log of that rank, named at the end",
    "hangs": "Ranks wait for one that does not come, or a device or a disk does not answer. Look "
    "at findings above, and at the ranks' logs, named at the end",
}


def differences(seen: Mapping[int, Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
    """Where ranks have other values than most.

    Args:
        seen: by rank, values by name.

    Returns:
        A text such as "batch_size is 16 on ranks 0, 2 and 32 on rank 1", and the ranks that are
        fewer.
    """
    found = []
    names = dict.fromkeys(name for each in seen.values() for name in each)
    for name in names:
        ranks: dict[str, list[int]] = {}
        for rank, each in seen.items():
            ranks.setdefault(str(each.get(name, "not given")), []).append(rank)
        if len(ranks) > 1:
            most = max(ranks.values(), key=len)
            text = " and ".join(f"{v} on {ranks_in_words(r)}" for v, r in ranks.items())
            found.append(
                (f"{name} is {text}", [r for each in ranks.values() for r in each if each != most])
            )
    return found


def described(error: BaseException) -> str:
    """An exception in a line; its traceback goes to the log."""
    import traceback

    traceback.print_exception(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:300]}"

"""The form of a check."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clipfast.doctor.finding import Finding
from clipfast.doctor.situation import Situation

Seen = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: in a report.
        look: on every rank; what it returns JSON holds. What it raises is a finding.
        judge: on rank 0: what it makes of what the ranks have seen. Ranks that did not answer are
            not in it.
        limit: seconds for ``look``. A rank that takes longer is a finding.
        terms: None where a rank looks alone. Else ``look`` is a collective, and this is what has to
            be the same on every rank before one of them enters.
    """

    name: str
    look: Callable[[Situation], Seen]
    judge: Callable[[Situation, Mapping[int, Seen]], list[Finding]]
    limit: float = 15.0
    terms: Callable[[Situation], Seen] | None = None

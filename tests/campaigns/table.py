"""What a campaign found: a row for each attack, a line for each kind of attack."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        campaign: kill, torn, ...
        case: the kind of attack.
        attack: this one of its kind.
        ok: nothing was lost.
        outcome: what happened, in a few words.
    """

    campaign: str
    case: str
    attack: str
    ok: bool
    outcome: str


@dataclass
class Table:
    """All attacks of a campaign, in order."""

    campaign: str
    rows: list[Row] = field(default_factory=list)

    def add(self, case: str, attack: str, ok: bool, outcome: str) -> None:
        """Note one attack; it is printed as it comes."""
        row = Row(self.campaign, case, attack, bool(ok), outcome)
        self.rows.append(row)
        if not ok:
            print(f"LOST {self.campaign}, {case}, {attack}: {outcome}", flush=True)

    @property
    def lost(self) -> list[Row]:
        """Attacks that lost something."""
        return [row for row in self.rows if not row.ok]


def markdown(rows: Iterable[Row]) -> str:
    """A table in Markdown: a line for each kind of attack, with its first loss."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.campaign, row.case), []).append(row)
    lines = ["| campaign | attack | tried | withstood | first loss |", "|---|---|---:|---:|---|"]
    for (campaign, case), group in cases.items():
        lost = [row for row in group if not row.ok]
        first = f"{lost[0].attack}: {lost[0].outcome}"[:150].replace("|", "/") if lost else ""
        lines.append(f"| {campaign} | {case} | {len(group)} | {len(group) - len(lost)} | {first} |")
    everything = [row for group in cases.values() for row in group]
    withstood = sum(row.ok for row in everything)
    lines.append(f"| all | | {len(everything)} | {withstood} | |")
    return "\n".join(lines)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Keep the rows as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")

"""What the programs share: their options, a folder to work in, the table at the end."""

import argparse
import random
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.subject import Subject
from tests.campaigns.table import Row, Table, markdown, write_rows


@dataclass(frozen=True)
class Setting:
    """What a campaign is called with.

    Attributes:
        subject: who is attacked.
        folder: to work in.
        count: number of attacks.
        random: where chance comes from.
        jobs: chains of runs at a time.
    """

    subject: Subject
    folder: Path
    count: int
    random: random.Random
    jobs: int = 1


Campaign = Callable[[Setting], Table]


def run_one() -> None:
    """Where the first word of the command line is a campaign's name, run that program and leave."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name.isidentifier() and Path(__file__).with_name(f"{name}.py").is_file():
        del sys.argv[1]
        # Whoever runs all of them has imported it; it would be there twice.
        sys.modules.pop(f"tests.campaigns.{name}", None)
        runpy.run_module(f"tests.campaigns.{name}", run_name="__main__", alter_sys=True)
        sys.exit()


def main(campaigns: Mapping[str, tuple[Campaign, int]], description: str | None) -> None:
    """Run campaigns, print one table, leave with status 1 where something was lost.

    Args:
        campaigns: by name, with the number of attacks of each.
        description: for ``--help``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, help="number of attacks of each campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repository", type=Path, help="attack this checkout")
    parser.add_argument("--python", type=Path, help="the interpreter that it is installed in")
    parser.add_argument("--jobs", type=int, default=2, help="chains of runs at a time")
    parser.add_argument("--json", type=Path, help="keep the rows here")
    parser.add_argument("--folder", type=Path, help="work and leave everything here")
    options = parser.parse_args()
    given = {"repository": options.repository, "python": options.python}
    # Not resolved: a virtual environment's python is a link to the one outside of it.
    subject = Subject(**{name: path.absolute() for name, path in given.items() if path})
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="clipfast-campaign-") as temporary:
        for name, (campaign, count) in campaigns.items():
            folder = (options.folder or Path(temporary)).absolute() / name
            folder.mkdir(parents=True, exist_ok=True)
            start = time.monotonic()
            chance = random.Random(options.seed)
            table = campaign(Setting(subject, folder, options.count or count, chance, options.jobs))
            rows += table.rows
            print(
                f"{name}: {len(table.rows)} attacks, {len(table.lost)} losses, "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
            if options.json:
                write_rows(rows, options.json)
    print(markdown(rows))
    sys.exit(any(not row.ok for row in rows))

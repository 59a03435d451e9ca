"""Tables and folders as people have them: a pair is right, or its row or file is named.

Every table and every folder is made by chance, with what it was meant to say. The packer is started
as a user starts it. Python's own modules read what came out.
"""

import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.campaigns.data_folders import lay
from tests.campaigns.data_judge import Verdict, judge_folder, judge_table, pack, picture
from tests.campaigns.data_tables import TABLES
from tests.campaigns.program import Setting, main
from tests.campaigns.subject import Subject
from tests.campaigns.table import Table

COUNT = 900


def campaign(setting: Setting) -> Table:
    """Make ``setting.count`` tables and folders, each kind in turn, and pack them."""
    cases: list[tuple[str, Callable[[Subject, Path, random.Random], Verdict]]] = [
        *((f"table, {kind}", partial(_try_table, kind)) for kind in TABLES),
        ("folder", _try_folder),
        ("folder", _try_folder),
    ]
    attacks = [
        (*cases[number % len(cases)], setting.random.getrandbits(32), setting.folder / str(number))
        for number in range(setting.count)
    ]

    def attempt(attack: tuple[str, Callable[..., Verdict], int, Path]) -> Verdict:
        _, function, seed, folder = attack
        folder.mkdir()
        verdict = function(setting.subject, folder, random.Random(seed))
        if not verdict.fault:
            shutil.rmtree(folder)
        return verdict

    table = Table("data")
    right = named = 0
    with ThreadPoolExecutor(setting.jobs) as pool:
        for (case, _, seed, folder), verdict in zip(
            attacks, pool.map(attempt, attacks), strict=True
        ):
            told = f"{verdict.right} right, {verdict.named} named"
            name = f"{folder.name}, seed {seed}"
            table.add(case, name, not verdict.fault, " ".join(verdict.fault.split()) or told)
            right, named = right + verdict.right, named + verdict.named
    print(f"data: {right:,} pairs right, {named:,} rows and files named, {len(table.lost)} silent")
    return table


def _try_table(kind: str, subject: Subject, folder: Path, chance: random.Random) -> Verdict:
    made = TABLES[kind](chance)
    data, lines = made.written()
    (folder / made.name).write_bytes(data)
    for number in made.allowed:
        (folder / f"{number}.png").write_bytes(picture(number))
    packed = pack(subject, folder / made.name, folder / "out", *made.options)
    return judge_table(packed, made.name, made.allowed, lines, made.exact)


def _try_folder(subject: Subject, folder: Path, chance: random.Random) -> Verdict:
    tree = lay(chance, folder / "in", folder / "outside")
    packed = pack(subject, folder / "in", folder / "out")
    return judge_folder(packed, tree.captions, tree.files, tree.pairs)


if __name__ == "__main__":
    main({"data": (campaign, COUNT)}, __doc__)

"""Calls of csrc's operators, right and wrong ones: what plain torch gives, or a refusal in words.

python -m tests.campaigns.calls --count 7350
make sanitize          the same with csrc built under AddressSanitizer and UBSan
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.campaigns.program import Setting, main
from tests.campaigns.table import Table

COUNT = 7350
# Calls of one process: one that dies costs the start of another.
_SHARE = 600
_SECONDS = 600
# So many of them, and the rest of its calls is left.
_DEATHS = 10
_WORKER = Path(__file__).with_name("calls_worker.py")
# Of the extension to try in the place of the installed one, and of what to load before it.
EXTENSION, PRELOAD = "CLIPFAST_TRY_EXTENSION", "CLIPFAST_TRY_PRELOAD"


def campaign(setting: Setting) -> Table:
    """Make ``setting.count`` calls."""
    table = Table("calls")
    seed = setting.random.randrange(1 << 31)
    shares = [
        range(first, min(first + _SHARE, setting.count))
        for first in range(0, setting.count, _SHARE)
    ]
    if os.environ.get(EXTENSION):
        done = _work(setting, "probe", os.environ[EXTENSION])
        sees = "AddressSanitizer" in done.stderr and done.returncode != 0
        said = "seen" if sees else f"status {done.returncode}: {done.stderr[-200:]}"
        table.add("a read beyond a block", "by the extension", sees, said)
    with ThreadPoolExecutor(max(1, setting.jobs)) as pool:
        for rows in pool.map(lambda numbers: _share(setting, seed, numbers), shares):
            for row in rows:
                attack = f"{seed}/{row['number']} {row['change']}: {row['ended']}"
                table.add(row["operator"], attack, not row["wrong"], row["wrong"] or row["ended"])
    return table


def _share(setting: Setting, seed: int, numbers: range) -> list[dict]:
    """The answers about some calls; after one that ends its process another goes on."""
    rows: list[dict] = []
    first, deaths = numbers.start, 0
    while first < numbers.stop and deaths < _DEATHS:
        words = (str(seed), os.environ.get(EXTENSION, ""), str(first), str(numbers.stop))
        done = _work(setting, *words)
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        rows += [answer for answer in answers if "number" in answer]
        begun = [answer["begin"] for answer in answers if "begin" in answer]
        first = begun[-1] + 1 if begun else numbers.stop
        if done.returncode or not begun:
            deaths += 1
            number = begun[-1] if begun else numbers.start
            lines = [
                line for line in done.stderr.splitlines() if "ERROR:" in line or "error:" in line
            ]
            said = (lines or done.stderr.strip().splitlines() or ["nothing"])[0]
            wrong = f"the process ended with {done.returncode}: {said[:200]}"
            rows.append(
                {"number": number, "operator": "?", "change": "?", "ended": "died", "wrong": wrong}
            )
    return rows


def _work(setting: Setting, *words: str) -> subprocess.CompletedProcess:
    """One worker, to its end."""
    return subprocess.run(
        [str(setting.subject.python), str(_WORKER), *words],
        cwd=setting.subject.repository,
        env=_environment(setting),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )


def _environment(setting: Setting) -> dict[str, str]:
    preload = os.environ.get(PRELOAD)
    return {
        **setting.subject.environment(),
        **({"LD_PRELOAD": preload} if preload else {}),
        # Python's own blocks live until it ends.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


if __name__ == "__main__":
    main({"calls": (campaign, COUNT)}, __doc__)

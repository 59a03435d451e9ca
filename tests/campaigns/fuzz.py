"""Mutated tars and indexes: no hang, no memory, no error without a name, no silent change.

What is read must be what Python's tarfile reads in the same bytes; what an index gives must be what
it gave before. Everything else must be refused with the shard's name and what to do, or stand in
the report.

    python -m tests.campaigns.fuzz --count 5000
    python -m tests.campaigns.fuzz --guided 600      led by coverage, with atheris
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.campaigns.program import Setting, main
from tests.campaigns.table import Table

_WORKER = Path(__file__).with_name("fuzz_worker.py")
# A worker that hangs in C is not woken by its alarm.
_SECONDS = 60


def campaign(setting: Setting) -> Table:
    """Try ``setting.count`` mutations."""
    table = Table("fuzz")
    seed = setting.random.randrange(1 << 31)
    jobs = max(1, min(setting.jobs, setting.count))
    shares = [range(job, setting.count, jobs) for job in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        answers = pool.map(lambda job: _share(setting, seed, job, shares[job]), range(jobs))
        rows = [answer for share in answers for answer in share]
    for row in sorted(rows, key=lambda row: int(row["attack"].rpartition("/")[2])):
        table.add(row["case"], row["attack"], not row["wrong"], row["wrong"] or row["ended"])
    return table


def _share(setting: Setting, seed: int, job: int, numbers: range) -> list[dict[str, str]]:
    """The answers of one worker; a worker that dies is followed by another."""
    answers: list[dict[str, str]] = []
    while len(answers) < len(numbers):
        left = numbers[len(answers) :]
        more, said = _answers(setting, seed, setting.folder / f"job-{job}", left)
        answers += more
        if len(answers) < len(numbers):
            attack = f"{seed}/{numbers[len(answers)]}"
            wrong = f"the worker died: {said[-300:]}"
            answers.append({"case": "?", "attack": attack, "ended": "died", "wrong": wrong})
            if not more:
                return answers
    return answers


def _answers(
    setting: Setting, seed: int, folder: Path, numbers: range
) -> tuple[list[dict[str, str]], str]:
    """What a worker answers until it ends, and what it said on stderr."""
    lines = "".join(json.dumps({"seed": seed, "number": number}) + "\n" for number in numbers)
    process = subprocess.Popen(
        [str(setting.subject.python), str(_WORKER), str(folder)],
        cwd=setting.subject.repository,
        env=setting.subject.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        answers, said = process.communicate(lines, timeout=_SECONDS + len(numbers))
    except subprocess.TimeoutExpired:
        process.kill()
        answers, said = process.communicate()
    return [json.loads(line) for line in answers.splitlines() if line.endswith("}")], said


if __name__ == "__main__":
    if "--guided" in sys.argv:
        from tests.campaigns.fuzz_guided import main as guided

        sys.exit(guided(sys.argv[1:]))
    main({"fuzz": (campaign, 5000)}, __doc__)

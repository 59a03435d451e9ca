"""Noise of a start goes to a file, words for a person to the person."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

PROGRAM = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from clipfast.engine.startlog import StartLog, tell
logging.basicConfig(level=logging.INFO, format="%(message)s")
log = StartLog()
try:
    with log.captured():
        print("noise of python")
        os.write(2, b"noise of c\\n")
        subprocess.run([sys.executable, "-c", "print('noise of a compiler')"])
        warnings.warn("noise to come", FutureWarning)
        tell("for a person")
        logging.getLogger("clipfast").warning("a warning of ours")
        FAILS
finally:
    print("afterwards")
log.keep(Path(sys.argv[1]) / "logs", 3)
warnings.warn("a later notice", FutureWarning)
warnings.warn("what counts", UserWarning)
"""


def run(folder: Path, fails: str = "pass") -> subprocess.CompletedProcess:
    return commands.run([sys.executable, "-c", PROGRAM.replace("FAILS", fails), str(folder)])


def test_start_log_takes_noise_and_leaves_what_clipfast_says(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["for a person", "afterwards"]
    assert "a warning of ours" in done.stderr
    assert "what counts" in done.stderr
    log = (tmp_path / "logs" / "start-rank3.txt").read_text()
    for words in ("of python", "of c", "of a compiler", "to come", "a later notice"):
        assert words in log
        assert words not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("fails", "shown"), [("raise RuntimeError('broken')", True), ("raise ValueError('odd')", False)]
)
def test_start_log_is_shown_where_the_start_broke(tmp_path, fails, shown):
    done = run(tmp_path, fails)
    assert done.returncode == 1
    assert ("noise of a compiler" in done.stderr) == shown


def test_start_log_without_room_costs_the_log_alone(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    assert run(tmp_path).returncode == 0

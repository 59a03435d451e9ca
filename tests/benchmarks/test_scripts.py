"""``ls benchmarks`` shows what can be run, and it runs by its path and as a module."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
# The package's two faces, and what scripts beside the benchmarks import; all say what they are.
PACKAGE = {"__init__.py", "benchmarks.py", "peers.py"}
# These run or show what the others measure; one is the former name of another.
ABOUT_ROWS = {"suite", "report", "tables"}
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name not in PACKAGE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_at_the_top_can_be_run_and_say_how(path):
    text = path.read_text()
    assert text.rstrip().endswith('if __name__ == "__main__":\n    main()')
    assert f"python benchmarks/{path.name}" in text.split('"""')[1]


@pytest.mark.parametrize(
    "path", [p for p in SCRIPTS if p.stem not in ABOUT_ROWS], ids=lambda p: p.stem
)
def test_scripts_that_measure_write_rows_where_asked(path, tmp_path):
    script = importlib.import_module(f"benchmarks.{path.stem}")
    rows = tmp_path / "rows.jsonl"
    assert script.build_parser().parse_args(["--json", str(rows)]).json == rows


def test_scripts_parts_cannot_be_run_and_leave_the_path_alone():
    for path in (FOLDER / "parts").rglob("*.py"):
        assert "__main__" not in path.read_text(), path
    for path in (*SCRIPTS, *(FOLDER / "parts").rglob("*.py")):
        assert not re.search(r"sys\.path\b", path.read_text()), path


@pytest.mark.parametrize(
    "command", [["benchmarks/adamw_proof.py"], ["-m", "benchmarks.adamw_proof"]], ids=" ".join
)
def test_scripts_run_by_path_and_as_modules(command):
    # This one imports the recipes, too.
    done = commands.run([sys.executable, *command, "--help"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--trace-steps" in done.stdout


@pytest.mark.needs("make")
def test_scripts_are_all_run_by_make_bench():
    # Under `make test`, this make would take over its switches and name the folder it enters.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "-n", "bench"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout, done.stderr
    loop = done.stdout.rsplit("-m benchmarks.report", 1)[0]
    for path in SCRIPTS:
        is_run = bool(re.search(rf"\b{path.stem}\b", loop))
        assert is_run != (path.stem in ABOUT_ROWS), path
    assert done.stdout.rstrip().endswith("-m benchmarks.report")

"""The pages and their code blocks; run as a program, it executes those of one page.

A comment before a block says how it is tested:

    <!-- checked only: REASON -->    a shell block whose commands are looked up and parsed, not run
    <!-- parsed only: REASON -->     a Python block that is compiled, not run
    <!-- setup                       Python that runs before the block and is not shown: what a
    CODE                             reader has in their own script
    -->

Every other block runs, those of a page in one process and one namespace, in an empty folder.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
_BESIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in _BESIDE), *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"<!-- (checked|parsed) only: .+ -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: where it stands.
        line: of its first line of code, from 1.
        language: python, sh, or what else the fence says.
        code: its lines.
        runs: whether it is executed.
        setup: code that runs before it.
        setup_line: of the first line of that.
    """

    page: Path
    line: int
    language: str
    code: str
    runs: bool
    setup: str
    setup_line: int

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """A page's path from the repository's folder."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    lines = page.read_text().splitlines()
    found, at = [], 0
    setup, setup_line, runs = "", 0, True
    while at < len(lines):
        line = lines[at]
        if line == "<!-- setup":
            end = lines.index("-->", at)
            setup, setup_line = "\n".join(lines[at + 1 : end]), at + 2
            at = end
        elif _MARK.match(line):
            runs = False
        elif fence := _FENCE.match(line):
            end = lines.index("```", at + 1)
            code = "\n".join(lines[at + 1 : end])
            found.append(Block(page, at + 2, fence[1], code, runs, setup, setup_line))
            at, setup, runs = end, "", True
        else:
            # A comment speaks of the block right below it.
            assert not (setup or not runs) or not line, f"{page}:{at + 1}: a block was expected"
        at += 1
    return found


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block, in words."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_page(page: Path) -> None:
    """Execute the blocks of a page that run."""
    # A module, because a dataclass looks for the one that it is defined in.
    sys.modules["page"] = ModuleType("page")
    namespace = vars(sys.modules["page"])

    def execute(code: str, line: int) -> None:
        # Blank lines before it, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)

    for block in blocks_of(page):
        if not block.runs or block.language not in ("python", "sh"):
            continue
        execute(block.setup, block.setup_line)
        if block.language == "python":
            execute(block.code, block.line)
            continue
        for words in commands_of(block):
            run_command(block, words)


def run_command(block: Block, words: list[str]) -> None:
    """``python -m clipfast...`` within this process."""
    assert words[:2] == ["python", "-m"], f"{block}: cannot run {words}, mark it `checked only`"
    module = __import__(words[2], fromlist=["main"])
    # The shell would expand a pattern without quotes; the programs do it themselves.
    assert module.main(words[3:]) in (None, 0), f"{block}: {' '.join(words)} failed"


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        # One worker works within this process; more would each import everything.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if "import open_clip" in (text := Path(sys.argv[1]).read_text()):
        from benchmarks.peers import import_open_clip

        import_open_clip()
    chosen = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_page(chosen)
        os.chdir(ROOT)

"""csrc/building/one_pass.py: several calls of torch's compiler, one run of ninja."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from torch.utils import cpp_extension

from csrc.building.one_pass import OnePass

ROOT = Path(__file__).resolve().parents[2]
RULE = "rule copy\n  command = cat $in > $out && echo {words} >> {log}\n"


@pytest.fixture
def run_ninja(monkeypatch):
    """A stand-in for torch's module whose `_run_ninja_build` runs ninja; it counts its calls."""
    scripts = sysconfig.get_path("scripts")
    monkeypatch.setenv("PATH", os.pathsep.join([scripts, os.environ["PATH"]]))
    module, calls = ModuleType("fake"), []

    def run(directory: str, verbose: bool, error_prefix: str) -> None:
        calls.append((Path(directory).name, verbose, error_prefix))
        subprocess.run(["ninja"], cwd=directory, check=True, capture_output=True)

    module._run_ninja_build = run
    return module, calls


def test_csrc_is_found_before_another_package_of_that_name(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]; import csrc.building"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def write_part(folder: Path, source: Path, log: Path, words: str) -> None:
    folder.mkdir(exist_ok=True)
    out = str(folder / "out").replace(" ", "$ ")
    rule = RULE.format(words=words, log=log)
    (folder / "build.ninja").write_text(f"{rule}build {out}: copy {source}\n")


def compile_all(module: ModuleType, tmp_path: Path) -> None:
    """What setup.py does: parts with flags of their own, then the rest."""
    one_pass = OnePass(module, tmp_path / "all")
    with one_pass.collect():
        for name in ("a b", "c"):
            module._run_ninja_build(str(tmp_path / name), True, error_prefix="of a part")
    with one_pass.run():
        module._run_ninja_build(str(tmp_path / "rest"), True, error_prefix="of all")


def test_one_pass_runs_all_parts_once_and_stays_incremental(run_ninja, tmp_path):
    module, calls = run_ninja
    original = module._run_ninja_build
    source, other, log = tmp_path / "source", tmp_path / "other", tmp_path / "log"
    source.write_text("1")
    other.write_text("1")
    # Each part has a rule of the same name, with words of its own, as flags are.
    for name, reads in (("a b", source), ("c", other), ("rest", source)):
        write_part(tmp_path / name, reads, log, name.replace(" ", "_"))
    compile_all(module, tmp_path)
    assert calls == [("all", True, "of all")]
    assert sorted(log.read_text().split()) == ["a_b", "c", "rest"]
    assert (tmp_path / "a b" / "out").read_text() == "1"
    log.write_text("")
    compile_all(module, tmp_path)
    assert log.read_text() == ""
    source.write_text("2")
    os.utime(source, (2**31, 2**31))
    compile_all(module, tmp_path)
    assert sorted(log.read_text().split()) == ["a_b", "rest"]
    assert module._run_ninja_build is original


def test_one_pass_puts_torchs_function_back_after_a_failure(run_ninja, tmp_path):
    module, _ = run_ninja
    original = module._run_ninja_build
    with pytest.raises(subprocess.CalledProcessError):
        compile_all(module, tmp_path)  # none of the parts is there
    assert module._run_ninja_build is original


def test_one_pass_without_torchs_function_changes_nothing(tmp_path):
    one_pass = OnePass(ModuleType("another torch"), tmp_path / "all")
    with one_pass.collect(), one_pass.run():
        pass
    assert not (tmp_path / "all").exists()


def test_torchs_function_is_the_one_that_is_replaced():
    """A torch that renames it builds in several runs again: slower, and this test says so."""
    first = next(iter(inspect.signature(cpp_extension._run_ninja_build).parameters))
    assert first == "build_directory"
    caller = inspect.getsource(cpp_extension._write_ninja_file_and_compile_objects)
    assert "_run_ninja_build(\n        build_directory," in caller

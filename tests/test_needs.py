"""Tests skip what is absent by name, fail where it is required, and collect on a bare machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.conftest import compile_threads

ROOT = Path(__file__).parents[1]
# A machine that has torch, Triton, pytest and numpy alone.
BARE = """
import sys
from importlib.machinery import PathFinder
from tests.needs import PACKAGES

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    is_absent = name in PACKAGES or name.partition(".")[0] in PACKAGES
    return None if is_absent else find(name, path, target)

PathFinder.find_spec = find_spec
"""
# Imports all modules of tests, as pytest does when it collects; says which lack a package.
IMPORT_ALL = """
import importlib
import pathlib
from tests.needs import absent_package

for path in pathlib.Path("tests").rglob("test_*.py"):
    try:
        importlib.import_module(".".join(path.with_suffix("").parts))
    except ImportError as error:
        print(path, absent_package(error) or repr(error))
"""
RUN = """
import pytest
sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", sys.argv[1]]))
"""
ALONE = ("ops/", "loss/", "optim/", "models/")
MODULES = {
    "test_lazy.py": """
def test_of_an_absent_package():
    import tyro.extras

def test_of_a_required_package():
    import ftfy

def test_of_another_import():
    import tyro_of_tomorrow

def test_of_nothing():
    pass
""",
    "test_top.py": "import PIL.Image\n\ndef test_of_pictures():\n    pass\n",
    "test_top_of_a_required_package.py": "from ftfy import fix_text\n",
}


@pytest.fixture(autouse=True)
def _nothing_required(monkeypatch):
    monkeypatch.delenv(needs.REQUIRE, raising=False)
    monkeypatch.delenv("CLIPFAST_BUILD_CUDA", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def on_a_bare_machine(
    script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BARE + script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_all_modules_of_tests_can_be_imported_or_lack_a_package():
    done = on_a_bare_machine(IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    found = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    lacking = {path.removeprefix("tests/"): reason for path, reason in found}
    assert lacking["engine/test_config.py"] == "tyro"
    assert set(lacking.values()) <= set(needs.PACKAGES)
    # What needs torch, Triton and pytest alone.
    assert [path for path in lacking if path.startswith(ALONE)] == []


def test_imports_of_absent_packages_skip_and_of_required_ones_fail(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    done = on_a_bare_machine(RUN, str(folder), **{needs.REQUIRE: "ftfy,webdataset"})
    told = done.stdout
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    (folder / "test_top_of_a_required_package.py").unlink()
    assert "1 skipped, 1 error in" in told
    done = on_a_bare_machine(RUN, str(folder), **{needs.REQUIRE: "ftfy,webdataset"})
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 1 passed, 2 skipped in" in done.stdout
    assert "test_lazy.py:0: tyro is not installed (pip install tyro)\n" in done.stdout
    assert "test_top.py:0: PIL is not installed (pip install pillow)\n" in done.stdout
    assert "No module named 'tyro_of_tomorrow'" in done.stdout
    for text in (told, done.stdout):
        assert "ftfy is not installed (pip install ftfy), and it is required\n" in text
        # No test has met it, and the run does not pass.
        assert "ERROR CLIPFAST_REQUIRE: webdataset: webdataset is not installed" in text


def test_need_skips_and_fails_where_it_is_required(monkeypatch):
    monkeypatch.setattr(needs, "obstacle", lambda name: f"no {name}" if name != "g++" else None)
    needs.need("g++")
    with pytest.raises(pytest.skip.Exception, match="no cuda-device"):
        needs.need("g++", "cuda-device")
    monkeypatch.setenv(needs.REQUIRE, "g++, cuda")
    with pytest.raises(pytest.fail.Exception, match="no cuda-device, and it is required"):
        needs.need("g++", "cuda-device")
    assert needs.unmet() == ["cuda-device: no cuda-device", "cuda-operators: no cuda-operators"]
    with pytest.raises(pytest.skip.Exception):
        needs.need("triton")


def test_a_build_with_cuda_requires_the_operators_and_no_device(monkeypatch):
    monkeypatch.setenv("CLIPFAST_BUILD_CUDA", "1")
    assert needs.required() == {"cuda-operators"}


def test_a_gpu_that_is_hidden_on_purpose_is_not_required(monkeypatch):
    monkeypatch.setenv(needs.REQUIRE, "cuda")
    assert needs.required() == {"cuda-device", "cuda-operators"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert needs.required() == {"cuda-operators"}


def test_required_names_are_known(monkeypatch):
    monkeypatch.setenv(needs.REQUIRE, "packages,extension")
    assert needs.required() == {*needs.PACKAGES, "extension"}
    monkeypatch.setenv(needs.REQUIRE, "cuda,tritn")
    with pytest.raises(pytest.UsageError, match="no tritn; there are cuda, packages, "):
        needs.required()


def test_tests_skip_absent_packages_through_needs_alone():
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            assert "importorskip" not in path.read_text(), f"{path}: use tests/needs.py"


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 4, 1), (16, 1, 16), (16, 4, 4), (16, 12, 1), (64, 4, 16)],
)
def test_compile_threads_share_the_cores_of_large_machines(cores, workers, threads):
    assert compile_threads(cores, workers) == threads

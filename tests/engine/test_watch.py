"""A rank knows its launchers from other programs above it."""

import subprocess
import sys

import pytest

from clipfast.engine.watch import _is_launcher

PRINT = "import os, clipfast.engine.watch as w; print(w.launchers() == [os.getppid()])"


@pytest.mark.parametrize(
    "word",
    [
        "deepspeed",
        "/opt/env/bin/torchrun",
        "torch.distributed.run",
        "clipfast.torchrun",
        "deepspeed.launcher.launch",
        "/env/lib/python3.11/site-packages/deepspeed/launcher/launch.py",
    ],
)
def test_watch_knows_launchers(word):
    assert _is_launcher(word)


@pytest.mark.parametrize(
    "word", ["", "/home/me/deepspeed-runs/start.sh", "deepspeed/train.py", "/deepspeed/x", "bash"]
)
def test_watch_takes_no_folder_for_a_launcher(word):
    assert not _is_launcher(word)


@pytest.mark.parametrize(("name", "found"), [("torchrun", True), ("torchrunner", False)])
def test_watch_finds_the_launcher_above_a_process(tmp_path, name, found):
    launcher = tmp_path / name
    launcher.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {PRINT!r}], check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(launcher)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(found)

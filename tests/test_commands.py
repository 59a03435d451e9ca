"""Programs in forked processes: what they are given and leave is what an interpreter would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.campaigns.subject import wait_until

TELL = """
import json, os, sys
print(json.dumps([sys.argv, sys.path, os.getcwd(), __name__, "torch" in sys.modules]))
print("odd \u00e9", file=sys.stderr)
"""
ENDS = """
import atexit, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
"""


def both(words, **options):
    """What a fork and an interpreter say of the same program."""
    forked = commands.run([sys.executable, *words], **options)
    theirs = subprocess.run([sys.executable, *words], capture_output=True, text=True, **options)
    return forked, theirs


@pytest.mark.parametrize("kind", ["script", "module", "code"])
def test_commands_see_what_an_interpreter_sees(tmp_path, kind):
    (tmp_path / "told.py").write_text(TELL)
    words = {"script": ["told.py"], "module": ["-m", "told"], "code": ["-c", TELL]}[kind]
    forked, theirs = both([*words, "--a", "b c"], cwd=tmp_path)
    # Only that it has torch already.
    assert forked.stdout == theirs.stdout.replace("false]", "true]")
    assert (forked.stderr, forked.returncode) == (theirs.stderr, theirs.returncode)


@pytest.mark.parametrize(
    "code",
    [
        *("raise SystemExit(3)", "raise SystemExit('why')", "raise SystemExit(-1)", "exit()"),
        *("import os; os.abort()", "import os; os.kill(os.getpid(), 15)", "import os; os._exit(7)"),
        *("import sys; sys.excepthook = lambda *_: print('hooked'); 1 / 0", ENDS),
    ],
)
def test_commands_end_as_an_interpreter_ends(code):
    forked, theirs = both(["-c", code])
    assert (forked.returncode, forked.stdout) == (theirs.returncode, theirs.stdout)
    assert forked.stderr == theirs.stderr


def test_commands_tell_a_traceback():
    forked, theirs = both(["-c", "def f():\n  1 / 0\nf()"])
    assert forked.returncode == theirs.returncode == 1
    assert forked.stderr.splitlines()[-2:] == theirs.stderr.splitlines()[-2:]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "TRITON_INTERPRET", "CLIPFAST_UNHEARD_OF"])
def test_commands_with_other_variables_are_interpreters(name):
    ask = [
        sys.executable,
        "-c",
        f"import os, sys; print('torch' in sys.modules, os.environ['{name}'])",
    ]
    done = commands.run(ask, env={**os.environ, name: "3"})
    assert done.stdout == "False 3\n"
    assert (
        commands.run([sys.executable, "-E", *ask[1:]], env={**os.environ, name: "3"}).returncode
        == 0
    )


def test_commands_take_variables_of_a_launcher():
    ask = """
import os, sys
print("torch" in sys.modules, os.environ["RANK"], os.environ["WORLD_SIZE"])
"""
    started = commands.start_ranks([sys.executable, "-c", ask], 2, 1234)
    assert [each.communicate(60)[0] for each in started] == ["True 0 2\n", "True 1 2\n"]


def is_alive(pid):
    """Neither gone nor waiting for its parent to see its end."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_commands_past_their_time_are_killed_with_their_children(tmp_path):
    file = tmp_path / "pid"
    code = f"""
import subprocess, sys
child = subprocess.Popen(["sleep", "60"])
open({str(file)!r}, "w").write(str(child.pid))
print("so far", flush=True)
child.wait()
"""
    with pytest.raises(subprocess.TimeoutExpired) as late:
        commands.run([sys.executable, "-c", code], timeout=2)
    assert late.value.output == "so far\n"
    assert wait_until(lambda: not is_alive(int(file.read_text())), 10)


def test_commands_can_be_signalled_while_they_run():
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
print("ready", flush=True)
time.sleep(60)
"""
    started = commands.Started([sys.executable, "-c", code])
    assert wait_until(lambda: "ready" in started.printed()[0], 60, 0.01)
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 9

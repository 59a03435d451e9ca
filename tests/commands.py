"""Run Python programs as ``subprocess.run`` does, in processes that have the imports already.

Starting an interpreter, torch and DeepSpeed costs more CPU time than most programs here need for
their own work. The process is forked from the fork server of ``tests/ranks.py``. Where it would
not be what an interpreter of its own would be, it becomes one by itself: for options of the
interpreter, and for any variable, other than those of ``MAY_DIFFER``, that the server has not or
has otherwise. Tests about imports, launchers and the end of an interpreter start one themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests.ranks import Descriptor

# Read while a program runs, and by no import. All else is taken for read by one.
MAY_DIFFER = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("CLIPFAST_CPU_PRODUCTS", "CLIPFAST_FAULT", "CLIPFAST_FAULT_AT", "CLIPFAST_CAMPAIGN"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"),
    *("AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP"),
    # Of the shell and of pytest; programs are looked for on PATH when they are started.
    *("PATH", "PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES", "PYTEST_CURRENT_TEST"),
    *("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"),
    # What DeepSpeed, scikit-learn, OpenCLIP and torch write for themselves, once they are imported.
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
    *("TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_CACHE_DIR"),
    *("DISABLE_CUPTI_LAZY_REINIT", "TEARDOWN_CUPTI", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"),
    *("TRITON_PTXAS_PATH", "TRITON_LIBDEVICE_PATH"),
)


class Started:
    """A program that is under way, with what it has printed so far.

    Attributes:
        args: the command line.
        pid: of its process, which leads a group and a session of its own.
        returncode: as of ``subprocess.Popen``, once `poll` or `wait` have seen its end.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        merged: bool = False,
        piped: bool = False,
    ) -> None:
        """Start a program.

        Args:
            command: ``sys.executable``, then a script, ``-c CODE`` or ``-m MODULE``, then its own
                words.
            cwd: its working folder.
            env: its environment; this process's own where none is given.
            merged: what it prints on stderr goes where its stdout goes.
            piped: `stdin` and `stdout` are pipes, to talk with it.
        """
        self.args = [os.fspath(word) for word in command]
        self.returncode: int | None = None
        self._files = [_unnamed_file() for _ in range(1 if merged else 2)]
        numbers = {1: self._files[0].fileno(), 2: self._files[-1].fileno()}
        if piped:
            numbers[0], ours = os.pipe()
            self.stdin = open(ours, "w")  # noqa: SIM115
            ours, numbers[1] = os.pipe()
            self.stdout = open(ours)  # noqa: SIM115
        descriptors = {target: Descriptor(number) for target, number in numbers.items()}
        environment = dict(os.environ if env is None else env)
        multiprocessing.set_forkserver_preload(["tests.preloaded"])
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_child,
            args=(self.args, os.fspath(cwd or os.getcwd()), environment, path(), descriptors),
        )
        self._process.start()
        if piped:
            os.close(numbers[0])
            os.close(numbers[1])
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its status, or None while it runs."""
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it ends.

        Raises:
            TimeoutExpired: It runs longer; it is left alone.
        """
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, *self.printed())
        return self._process.exitcode or 0

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Until it ends; what it has printed."""
        self.wait(timeout)
        return self.printed()

    def printed(self) -> tuple[str, str]:
        """What it has printed until now, on stdout and on stderr."""
        texts = [_text(file) for file in self._files]
        return texts[0], texts[1] if len(texts) > 1 else ""

    def send_signal(self, number: int) -> None:
        """To the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        self.poll()


def run(
    command: Sequence[str],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    merged: bool = False,
    timeout: float | None = 600,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with captured text, see `Started`.

    Raises:
        TimeoutExpired: It ran longer; it and what it started are killed.
        CalledProcessError: ``check`` is given and its status is not 0.
    """
    started = Started(command, cwd=cwd, env=env, merged=merged)
    try:
        started.wait(timeout)
    finally:
        if started.poll() is None:
            started.kill()
    done = subprocess.CompletedProcess(started.args, started.wait(), *started.printed())
    if check:
        done.check_returncode()
    return done


def start_ranks(
    command: Sequence[str], world_size: int, port: int, *, env: Mapping[str, str] | None = None
) -> list[Started]:
    """Start the ranks of a run on this machine with the variables that launchers set.

    Args:
        command: of every rank, see `Started`; their stderr goes where their stdout goes.
        world_size: number of ranks.
        port: where they meet.
        env: what they share.
    """
    shared = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1"}
    started = []
    for rank in range(world_size):
        names = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        told = {name: str(value) for name, value in names.items()}
        started.append(Started(command, env={**(env or os.environ), **told}, merged=True))
    return started


@cache
def path() -> list[str]:
    """``sys.path`` of an interpreter without what it starts with: a script's folder, or none."""
    words = [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def _unnamed_file() -> IO[bytes]:
    return tempfile.TemporaryFile("w+b")


def _text(file: IO[bytes]) -> str:
    # By place, and not by a seek: the program writes at the same one.
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace").replace("\r\n", "\n")


def _fits(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a fork of the server is what an interpreter of its own would be."""
    if len(command) < 2 or command[0] != sys.executable:
        return False
    if command[1].startswith("-") and command[1] not in ("-c", "-m"):
        return False
    from tests.preloaded import ENVIRONMENT  # here in the server; importing it takes seconds

    names = {*environment, *ENVIRONMENT} - set(MAY_DIFFER)
    return all(environment.get(name) == ENVIRONMENT.get(name) for name in names)


def _child(
    command: list[str],
    cwd: str,
    environment: dict[str, str],
    import_path: list[str],
    descriptors: dict[int, Any],
) -> None:
    os.setsid()
    for target, descriptor in descriptors.items():
        os.dup2(descriptor, target)
    for descriptor in descriptors.values():
        os.close(descriptor)
    if 0 in descriptors:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    if not _fits(command, environment):
        os.execvpe(command[0], command, environment)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    random.seed()
    faulthandler.disable()
    status = 1
    try:
        status = _execute(command[1:], import_path)
    finally:
        # What an interpreter does at its end, but for static destructors.
        with contextlib.suppress(BaseException):
            threading._shutdown()
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def _execute(words: list[str], import_path: list[str]) -> int:
    """Run a program as ``__main__``; its status."""
    is_script = words[0] not in ("-c", "-m")
    first = os.path.dirname(os.path.realpath(words[0])) if is_script else ""
    sys.path[:] = [first if is_script else os.getcwd() if words[0] == "-m" else "", *import_path]
    sys.path_importer_cache.clear()
    try:
        if is_script:
            sys.argv[:] = words
            runpy.run_path(words[0], run_name="__main__")
        elif words[0] == "-m":
            sys.argv[:] = words[1:]
            # Someone else's import of it is not this one.
            sys.modules.pop(words[1], None)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = ["-c", *words[2:]]
            main = type(sys)("__main__")
            sys.modules["__main__"] = main
            exec(compile(words[1], "<string>", "exec"), vars(main))
    except SystemExit as left:
        return _status(left)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        _tell()
        return 1
    return 0


def _status(left: SystemExit) -> int:
    if left.code is None or isinstance(left.code, int):
        return (left.code or 0) & 0xFF
    print(left.code, file=sys.stderr)
    return 1


def _tell() -> None:
    """Through whatever hook the program has set."""
    kind, error, trace = sys.exc_info()
    assert kind is not None
    assert error is not None
    sys.excepthook(kind, error, trace)

"""Files that create a canary where whoever reads them runs what they bring."""

import builtins
import functools
import io
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import timeit
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Call:
    """Pickled, it is a call.

    Args:
        function: what is called by whoever unpickles it.
        arguments: of the call.
    """

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._function, self._arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._function, self._arguments


def calls(canary: Path) -> dict[str, Call]:
    """Calls that create the canary, by name.

    Args:
        canary: does not exist; files that a call needs are written beside it.
    """
    line = f"open({str(canary)!r}, 'w').close()"
    script = canary.with_name("script.py")
    script.write_text(line + "\n")
    hub = canary.with_name("hub")
    hub.mkdir(exist_ok=True)
    (hub / "hubconf.py").write_text(line + "\ndef entry(**_):\n    return 1\n")
    nested = pickle.dumps(Call(os.system, f"touch {canary}"))
    array = canary.with_name("array.npy")
    np.save(array, np.array([Call(os.system, f"touch {canary}")], dtype=object), allow_pickle=True)
    other = canary.with_name("other.pt")
    torch.save({"x": Call(os.system, f"touch {canary}")}, other)
    return {
        "os.system": Call(os.system, f"touch {canary}"),
        "exec": Call(builtins.exec, line),
        "eval": Call(builtins.eval, line),
        "open": Call(io.open, str(canary), "w"),
        "subprocess": Call(subprocess.Popen, ["touch", str(canary)]),
        "runpy": Call(runpy.run_path, str(script)),
        "shutil": Call(shutil.copy, str(script), str(canary)),
        "timeit": Call(timeit.timeit, line, "pass", timeit.default_timer, 1),
        "pickle.loads": Call(pickle.loads, nested),
        "numpy.load": Call(np.load, str(array), None, True),
        "torch.save": Call(torch.save, {}, str(canary)),
        "torch.from_file": Call(torch.from_file, str(canary), True, 8),
        "torch.hub": Call(functools.partial(torch.hub.load, source="local"), str(hub), "entry"),
        "torch.load": Call(functools.partial(torch.load, weights_only=False), str(other)),
        "methodcaller": Call(_touch(), Path(canary)),
    }


def _touch() -> Any:
    return operator.methodcaller("touch")


def _zip(call: Call, canary: Path, path: Path) -> None:
    torch.save({"module": {"x": call}, "state_dict": {"x": call}}, path)


def _legacy(call: Call, canary: Path, path: Path) -> None:
    torch.save({"module": {"x": call}}, path, _use_new_zipfile_serialization=False)


def _pickle(call: Call, canary: Path, path: Path) -> None:
    path.write_bytes(pickle.dumps({"module": call}))


def _magic(call: Call, canary: Path, path: Path) -> None:
    # The first thing that a reader of the form of before torch 1.6 unpickles.
    path.write_bytes(pickle.dumps(call, protocol=2) + pickle.dumps({}))


def _raw(program: Callable[[Path], bytes]) -> Callable[[Call, Path, Path], None]:
    def write(call: Call, canary: Path, path: Path) -> None:
        torch.save({"module": torch.zeros(1)}, path)
        _replace_entry(path, "data.pkl", program(canary))

    return write


def _persistent(canary: Path) -> bytes:
    # The call stands in the name of a storage.
    return b"(U\x07storage" + _program(canary)[:-1] + b"tQ."


def _program(canary: Path) -> bytes:
    return f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()


def _instance(canary: Path) -> bytes:
    return f"(S'touch {canary}'\niposix\nsystem\n.".encode()


def _replace_entry(path: Path, suffix: str, data: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, data if name.endswith("/" + suffix) else content)


class _Scripted(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        self.weight = torch.from_file(state[0], True, 8)


def _torchscript(call: Call, canary: Path, path: Path) -> None:
    torch.jit.script(_Scripted(str(canary))).save(str(path))
    # Saving does not run it; nothing may be there before the attack.
    canary.unlink(missing_ok=True)


def _torchscript_pickle(call: Call, canary: Path, path: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    _replace_entry(path, "data.pkl", _program(canary))


Write = Callable[[Call, Path, Path], None]
FORMS: Mapping[str, Write] = {
    "zip": _zip,
    "form before torch 1.6": _legacy,
    "plain pickle": _pickle,
    "magic number": _magic,
    "zip, protocol 0": _raw(_program),
    "zip, INST": _raw(_instance),
    "zip, name of a storage": _raw(_persistent),
    "TorchScript, __setstate__": _torchscript,
    "TorchScript, data.pkl": _torchscript_pickle,
}

"""Files of weights of every kind: each is loaded right or refused for what it is.

Within ten seconds, and within twice its bytes, the model's and 64 MiB. A refused file changes
nothing. Files are judged by the state of the model, bit by bit, and by a word in the message.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.program import Setting, main
from tests.campaigns.table import Table
from tests.campaigns.weights_files import FILES, File
from tests.campaigns.weights_worker import build

COUNT = len(FILES)
_SECONDS = 10.0
_FREE_BYTES = 64 << 20
_WORKER = Path(__file__).with_name("weights_worker.py")


def campaign(setting: Setting) -> Table:
    """Load ``setting.count`` files."""
    table = Table("weights")
    model = build(0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model_bytes = sum(tensor.nbytes for tensor in state.values())
    reference = setting.folder / "reference.pt"
    torch.save(state, reference)
    chosen = FILES
    if setting.count < COUNT:
        chosen = setting.random.sample(FILES, setting.count)
    paths = {}
    for number, file in enumerate(chosen):
        folder = setting.folder / f"{number:03d}"
        folder.mkdir()
        paths[str(file.make(folder, {n: t.clone() for n, t in state.items()}))] = file
    for found in _load(setting, reference, list(paths)):
        file, path = paths[found["path"]], Path(found["path"])
        fault = _fault(file, found, _size(path), model_bytes)
        outcome = fault or ("refused" if found["refused"] else "loaded")
        table.add(file.kind, file.name, not fault, outcome)
    return table


def _load(setting: Setting, reference: Path, paths: list[str]) -> list[dict[str, Any]]:
    subject = setting.subject
    worker = subprocess.run(
        [str(subject.python), str(_WORKER), str(reference), str(2 * _SECONDS)],
        input="\n".join(paths) + "\n",
        cwd=subject.repository,
        env={**subject.environment(), "PYTHONPATH": str(subject.repository)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in worker.stdout.splitlines()]


def _fault(file: File, found: dict[str, Any], size: int, model_bytes: int) -> str:
    """What is wrong with what happened; empty where nothing is."""
    if "died" in found:
        return found["died"]
    if found["error"]:
        return f"another error: {found['error']}"
    if found["differing"]:
        what = "changed before it was refused" if found["refused"] else "other values than the file"
        return f"{what}: {', '.join(found['differing'][:3])}"
    if found["seconds"] > _SECONDS:
        return f"{found['seconds']:.0f} s"
    if found["bytes"] > 2 * size + model_bytes + _FREE_BYTES:
        return f"{found['bytes'] >> 20} MiB for a file of {size >> 20} MiB"
    if found["refused"] and not file.words:
        return f"refused: {found['message'][-200:]}"
    if not found["refused"] and file.words:
        return "loaded"
    message = found["message"]
    if found["refused"] and not any(word in message for word in file.words):
        return f"not named for what it is: {message[-200:]}"
    if "weights_only=False" in message or not message.isprintable():
        return f"advice or characters that harm: {message[:200]!r}"
    return ""


def _size(path: Path) -> int:
    files = path.parent.rglob("*") if path.is_dir() or path.name.endswith(".json") else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main({"weights": (campaign, COUNT)}, __doc__)

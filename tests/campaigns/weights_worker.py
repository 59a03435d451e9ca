"""Loads files of weights, each in a process of its own; prints what happened, a line of JSON each.

python weights_worker.py REFERENCE SECONDS < FILES

FILES has a path on each line. REFERENCE is a state dict of the model that is filled.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.models import CLIP, create_model, load_weights

MODEL = "ViT-tiny"
OVERRIDES = {"vision_layers": 2, "text_layers": 1, "vocab_size": 300}


def build(seed: int) -> CLIP:
    """The model of the campaign."""
    torch.manual_seed(seed)
    return create_model(MODEL, **OVERRIDES)


def load(path: str, reference: dict[str, Tensor]) -> dict[str, Any]:
    """Load one file into a model; what came of it."""
    model = build(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    resident = _memory("VmRSS")
    _reset_peak()
    start = time.monotonic()
    found: dict[str, Any] = {"refused": False, "message": "", "error": ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_weights(model, path)
    except ValueError as error:
        found |= {"refused": True, "message": str(error)}
    except BaseException as error:
        found |= {"refused": True, "error": f"{type(error).__name__}: {error}"[:300]}
    found["seconds"] = time.monotonic() - start
    found["bytes"] = _memory("VmHWM") - resident
    wanted = before if found["refused"] else reference
    state = model.state_dict()
    # Bits, so that a NaN equals itself.
    found["differing"] = [n for n, t in state.items() if _bits(t) != _bits(wanted[n])]
    return found


def main() -> None:
    """Load what standard input names."""
    reference = torch.load(sys.argv[1], weights_only=True)
    limit = float(sys.argv[2])
    # A process cannot be forked once torch has threads.
    torch.set_num_threads(1)
    build(1)
    # What a model without memory, to compare a file with, has to import.
    with torch.device("meta"):
        build(1)
    for line in sys.stdin:
        path = line.rstrip("\n")
        print(json.dumps({"path": path, **_in_child(path, reference, limit)}), flush=True)


def _in_child(path: str, reference: dict[str, Tensor], limit: float) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(load(path, reference)))
        os._exit(0)
    os.close(writer)
    text, deadline = b"", time.monotonic() + limit
    with os.fdopen(reader, "rb") as pipe:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                part = os.read(pipe.fileno(), 1 << 16)
                if not part:
                    break
                text += part
        else:
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if text:
        return json.loads(text)
    return {"died": f"no end within {limit:.0f} s" if left <= 0 else f"status {status}"}


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _reset_peak() -> None:
    # Where the kernel does not let us, the peak so far counts.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()

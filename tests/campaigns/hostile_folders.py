"""Run folders and shards made to harm whoever reads them, without a pickle."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.traces import checkpoints, manifest_of


@dataclass(frozen=True)
class Trap:
    """Where a trap is laid.

    Attributes:
        run: a copied run with whole checkpoints.
        victim: a folder outside of it, with a file that must stay as it is.
        canary: must not come to be.
    """

    run: Path
    victim: Path
    canary: Path

    @property
    def newest(self) -> Path:
        """The newest checkpoint."""
        return checkpoints(self.run)[-1]


def sign(checkpoint: Path) -> None:
    """Make the manifest true again, as whoever made the files would."""
    path = manifest_of(checkpoint)
    assert path is not None
    document = json.loads(path.read_text())
    if "content" not in document:
        return
    for name in document["content"]["files"]:
        data = (checkpoint / name).read_bytes()
        document["content"]["files"][name] = {"size": len(data), "sha256": sha256(data).hexdigest()}
    write_signed(path, document["content"])


def write_signed(path: Path, content: dict[str, Any]) -> None:
    """Write a manifest with the hash that it needs."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    document = {"sha256": sha256(canonical.encode()).hexdigest(), "content": content}
    path.unlink()
    path.write_text(json.dumps(document))


def by_deepspeed(checkpoint: Path) -> None:
    """Turn a checkpoint into what it was before its files were safetensors, with nothing in it."""
    path = manifest_of(checkpoint)
    assert path is not None
    content = json.loads(path.read_text()).get("content")
    if content is None or not list(checkpoint.glob("*.safetensors")):
        return
    for name in content["files"]:
        (checkpoint / name).unlink()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({}, checkpoint / name)
    content["format"] = 1
    content["state"].pop("engine", None)
    content["files"] = {path.name: {} for path in checkpoint.glob("*.pt")}
    write_signed(path, content)
    sign(checkpoint)


def as_before(checkpoint: Path) -> None:
    """Turn the manifest into that of versions 0.1 and 0.2, which knew no hashes."""
    path = manifest_of(checkpoint)
    assert path is not None
    content = json.loads(path.read_text())
    if "content" not in content:
        return
    content = content["content"]
    path.unlink()
    old = {"step": content["step"], "layout": content["layout"], **content["state"]}
    (checkpoint / "complete.json").write_text(json.dumps(old))


def _largest(checkpoint: Path) -> Path:
    return max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)


def _name_leads_out(trap: Trap) -> None:
    path = manifest_of(trap.newest)
    assert path is not None
    document = json.loads(path.read_text())
    secret = next(trap.victim.iterdir())
    name = os.path.relpath(secret, trap.newest)
    entry = {"size": secret.stat().st_size, "sha256": sha256(secret.read_bytes()).hexdigest()}
    if "content" in document:
        document["content"]["files"][name] = entry
        write_signed(path, document["content"])


def _file_is_a_link(trap: Trap) -> None:
    path = _largest(trap.newest)
    moved = trap.victim.parent / "moved"
    shutil.move(path, moved)
    path.symlink_to(moved)


def _manifest_is_a_link(trap: Trap) -> None:
    path = manifest_of(trap.newest)
    assert path is not None
    moved = trap.victim.parent / "moved"
    shutil.move(path, moved)
    path.symlink_to(moved)


def _folder_is_a_link(trap: Trap) -> None:
    shutil.rmtree(trap.newest)
    (trap.run / "checkpoints" / "step00000099").symlink_to(trap.victim)
    oldest = checkpoints(trap.run)[0]
    shutil.copy(manifest_of(oldest) or "", trap.victim)


def _weights_are_a_link(trap: Trap) -> None:
    path = trap.run / "final.safetensors"
    path.unlink(missing_ok=True)
    path.symlink_to(next(trap.victim.iterdir()))


def _script_is_replaced(trap: Trap) -> None:
    for name in ("zero_to_fp32.py", "zero_to_torch.py", "sitecustomize.py", "torch.py"):
        path = trap.run / "checkpoints" / name
        path.unlink(missing_ok=True)
        path.write_text(f"open({str(trap.canary)!r}, 'w').close()\n")


def _manifest_is_deep(trap: Trap) -> None:
    path = manifest_of(trap.newest)
    assert path is not None
    path.unlink()
    path.write_text("[" * 200_000)


def _manifest_has_other_kinds(trap: Trap) -> None:
    path = manifest_of(trap.newest)
    assert path is not None
    document = json.loads(path.read_text())
    content = document.get("content", document)
    content["step"] = "__import__('os')"
    if content is document:
        path.unlink()
        path.write_text(json.dumps(content))
    else:
        write_signed(path, content)


def _metrics_are_deep(trap: Trap) -> None:
    path = trap.run / "metrics.jsonl"
    text = path.read_text()
    path.unlink()
    path.write_text(text + "[" * 200_000 + "}\n")


# Whether the run goes on (0), is refused (2), or may do either (None): it must not do harm.
FOLDERS: dict[str, tuple[Callable[[Trap], None], int | None]] = {
    "a name that leads out of the folder": (_name_leads_out, 0),
    "a file is a link": (_file_is_a_link, 0),
    "the manifest is a link": (_manifest_is_a_link, 0),
    "a checkpoint is a link": (_folder_is_a_link, None),
    "final weights are a link": (_weights_are_a_link, 0),
    "scripts are replaced": (_script_is_replaced, 0),
    "a manifest of 200,000 brackets": (_manifest_is_deep, 0),
    "a step that is a text": (_manifest_has_other_kinds, 0),
    "a row of 200,000 brackets": (_metrics_are_deep, 0),
}

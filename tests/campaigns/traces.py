"""What a run leaves, as any version of the engine writes it."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

# The file that says that a checkpoint is whole: now, and in versions before.
MANIFESTS = ("manifest.json", "complete.json")


def rows(run: Path) -> list[dict[str, Any]]:
    """Training rows of metrics.jsonl; a line that a kill has cut is left out."""
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "loss" in row:
            found.append(row)
    return found


def last_step(run: Path) -> int:
    """The last step that was written to the metrics; 0 for none."""
    return max((row["step"] for row in rows(run)), default=0)


def has_evaluated(run: Path, step: int) -> bool:
    """Whether the evaluation after a step is in the metrics."""
    path = run / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    wanted = f'"step": {step},'
    return any(wanted in line and '"eval/' in line for line in lines)


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss, in the order of the file."""
    return [(row["step"], row["loss"]) for row in rows(run)]


def manifest_of(checkpoint: Path) -> Path | None:
    """The file that says that a checkpoint is whole."""
    return next((checkpoint / n for n in MANIFESTS if (checkpoint / n).is_file()), None)


def checkpoints(run: Path) -> list[Path]:
    """Whole ones, by step."""
    found = (run / "checkpoints").glob("step*")
    return sorted(path for path in found if manifest_of(path))


def unfinished(run: Path) -> list[str]:
    """Names of what is being written, or what a kill left of it."""
    names = [path.name for path in run.rglob("*") if _is_temporary(path.name)]
    names += [path.name for path in run.parent.glob(".*") if path.is_file()]
    # What a resume put aside as damaged is kept on purpose.
    steps = [p for p in (run / "checkpoints").glob("step*") if p.suffix != ".damaged"]
    return names + [path.name for path in steps if path.is_dir() and not manifest_of(path)]


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    found = (run / "checkpoints").glob("*step*")
    return any(path.is_dir() and not manifest_of(path) for path in found)


def difference(run: Path, reference: Path) -> str:
    """How the end of a run differs from that of another: weights bit by bit, metrics, remains.

    Returns:
        Empty where it does not.
    """
    if not (run / "final.safetensors").is_file():
        return "no final weights"
    ours = safetensors.torch.load_file(run / "final.safetensors")
    theirs = safetensors.torch.load_file(reference / "final.safetensors")
    if ours.keys() != theirs.keys():
        return "final weights of other names"
    differing = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    if differing:
        return f"{len(differing)} of {len(theirs)} final tensors differ"
    if losses(run) != losses(reference):
        return f"metrics differ: {len(losses(run))} rows, {len(losses(reference))} expected"
    if left := unfinished(run):
        return f"left over: {', '.join(left)}"
    return ""


def _is_temporary(name: str) -> bool:
    return ".tmp" in name or ".partial" in name or name.startswith(".")

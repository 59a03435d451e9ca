"""Look at a run's checkpoints from outside: ``python -m clipfast.checkpoint``."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from clipfast.checkpoint.catalogue import Found, find, look
from clipfast.checkpoint.contents import described, export_weights
from clipfast.checkpoint.fragments import Unfit
from clipfast.checkpoint.manifest import FOR_GOOD, problems
from clipfast.checkpoint.trusted import Refused, why_refused


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; None takes ``sys.argv``.

    Returns:
        0, or 1 where a checkpoint is damaged or would be refused, or 2 where there is none.
    """
    parser = argparse.ArgumentParser(prog="python -m clipfast.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("list", "what is there, by the manifests alone"),
        ("verify", "read every byte and compare it with the manifest; status 1 names what differs"),
        ("show", "what the newest holds: parameters, their types and places, buffers"),
        ("export", "write the exact weights of the newest in float32, without a run"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.add_argument("run", type=Path, help="a run's folder, or that of one checkpoint")
        if name == "export":
            command.add_argument("out", type=Path, help="the safetensors file to write")
    options = parser.parse_args(arguments)
    checkpoints = _checkpoints(options.run)
    if not checkpoints:
        print(f"no checkpoint in {options.run}", file=sys.stderr)
        return 2
    if options.command in ("show", "export"):
        return _show_or_export(checkpoints[-1], getattr(options, "out", None))
    verify = options.command == "verify"
    status = 0
    for found in checkpoints:
        damage = [found.damage] if found.damage else _damage(found) if verify else []
        status |= bool(damage)
        print(f"{found.path.name}: {_describe(found, damage, verify)}")
        for line in damage:
            print(f"  {line}")
    return status


def _show_or_export(found: Found, out: Path | None) -> int:
    if found.manifest is None:
        print(found.damage, file=sys.stderr)
        return 1
    try:
        if out is None:
            print(*described(found.path, found.manifest), sep="\n")
        else:
            count = export_weights(found.path, found.manifest, out)
            print(f"{out}: {count} tensors of {found.path}")
    except (Unfit, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _checkpoints(folder: Path) -> list[Found]:
    if (folder / "checkpoints").is_dir():
        return find(folder / "checkpoints")
    if (found := look(folder)) is not None:
        return [found]
    return find(folder)


def _describe(found: Found, damage: list[str], verified: bool) -> str:
    if found.manifest is None:
        return "damaged"
    manifest = found.manifest
    parts = [f"after step {manifest.step}"]
    if manifest.is_verifiable:
        parts += [
            f"run {manifest.run}",
            f"number {manifest.counter}",
            f"{len(manifest.files)} file(s), {manifest.size / 1e9:.3f} GB",
        ]
    else:
        parts.append("saved by an earlier version: there are no hashes to compare with")
    parts += [f"{name} {value}" for name, value in manifest.layout.items()]
    if manifest.state.get(FOR_GOOD) is True:
        parts.append("kept for good")
    if damage:
        parts.append("damaged")
    elif verified and manifest.is_verifiable:
        parts.append("intact")
    return ", ".join(parts)


def _damage(found: Found) -> list[str]:
    assert found.manifest is not None
    lines = []
    names = tqdm(found.manifest.files, desc=found.path.name, unit="file", leave=False)
    for name in names:
        differing = [problem.text for problem in problems(found.path, found.manifest, [name])]
        lines += differing or _refused(found.path / name)
    return lines


def _refused(path: Path) -> list[str]:
    try:
        reason = why_refused(path)
    except Refused as error:
        return [str(error)]
    return [f"{path} will be refused: {reason}"] if reason else []


if __name__ == "__main__":
    sys.exit(main())

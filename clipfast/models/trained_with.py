"""Which activation weights were trained with: what tells it, and what is said where nothing does.

Tensors are the same with either, and features are not. Our own files say it in their metadata, a
TorchScript archive by its modules. Other files of weights lie beside a configuration, or say
nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfast.models.architecture import Architecture
from clipfast.models.layers import ACTIVATIONS

# One that is larger is no configuration of a model.
_LARGEST_CONFIG = 1 << 20


@dataclass(frozen=True)
class Said:
    """An activation, and what says so.

    Attributes:
        activation: "quick_gelu", "gelu", or another word where the model has neither.
        source: for messages, such as a file beside the weights.
    """

    activation: str
    source: str


def beside(path: Path) -> Said | None:
    """What a configuration beside a file of weights says.

    Looked at are OpenCLIP's `open_clip_config.json`, Hugging Face's `config.json`, a `.json` of the
    file's own name, and the `params.txt` of OpenCLIP's training runs.

    Args:
        path: the weights, or their folder.

    Returns:
        The activation; None where there is no such file, or where two of them disagree.
    """
    folder = path if path.is_dir() else path.parent
    names = ["open_clip_config.json", "config.json", f"{path.stem}.json", f"{path.name}.json"]
    found = [_of_config(folder / name) for name in dict.fromkeys(names)]
    if folder.name == "checkpoints":
        found.append(_of_run(folder.parent / "params.txt"))
    said = [each for each in found if each is not None]
    return said[0] if len({each.activation for each in said}) == 1 else None


def check_activation(said: Said | None, architecture: Architecture, path: Path) -> None:
    """Refuse weights that were trained with another activation: they fit, and features are wrong.

    Args:
        said: what tells it; None refuses nothing.
        architecture: of the model that is to be filled.
        path: the file, for messages.

    Raises:
        ValueError: the activations differ, with both and the remedy.
    """
    own = architecture.activation
    if said is None or said.activation == own:
        return
    which = said.activation
    remedy = (
        f"Build the model with create_model(..., activation={which!r}), or pass "
        f"--model.activation {which} to a run"
        if which in ACTIVATIONS
        else f"Models here have {' or '.join(ACTIVATIONS)}"
    )
    raise ValueError(
        f"{path} was trained with {which} ({said.source}), and {architecture.name} computes {own}: "
        f"its weights would fit and give wrong features. {remedy}. To start from these all the "
        "same, pass load_weights(..., other_activation=True)"
    )


def warn_assumed(architecture: Architecture, path: Path) -> None:
    """Say which activation is assumed of a file that says none.

    Args:
        architecture: of the model that was filled.
        path: the file.
    """
    own = architecture.activation
    warnings.warn(
        f"{path} does not say which activation it was trained with: {own} is assumed. Weights of "
        "OpenCLIP's models without -quickgelu in their names have gelu (create_model(..., "
        "activation='gelu'), --model.activation gelu), others quick_gelu. "
        f"load_weights(..., activation={own!r}) says that this is right",
        stacklevel=3,
    )


def given_by_caller(activation: str) -> Said:
    """What the caller says of a file that cannot say it.

    Raises:
        ValueError: there is no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return Said(activation, "as activation= says")


def _of_config(path: Path) -> Said | None:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_CONFIG:
            return None
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    activation = _of_openclip(config.get("model_cfg", config)) or _of_hugging_face(config)
    return None if activation is None else Said(activation, f"as {path.name} beside it says")


def _of_openclip(config: Any) -> str | None:
    parts = [config.get(f"{tower}_cfg") for tower in ("vision", "text")] if _is(config) else []
    if not parts or not all(_is(part) for part in parts):
        return None
    kind = "quick_gelu" if config.get("quick_gelu") else "gelu"
    changed = any(part.get("act_kwargs") for part in parts)
    return f"{kind} with act_kwargs" if changed else kind


def _of_hugging_face(config: Mapping[str, Any]) -> str | None:
    if config.get("model_type") != "clip":
        return None
    towers = [config.get(f"{tower}_config") or {} for tower in ("vision", "text")]
    if not all(_is(tower) for tower in towers):
        return None
    # What their class of configurations has where the file is silent.
    kinds = {str(tower.get("hidden_act", "quick_gelu"))[:40] for tower in towers}
    return kinds.pop() if len(kinds) == 1 else " and ".join(sorted(kinds))


def _of_run(path: Path) -> Said | None:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_CONFIG:
            return None
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    options = dict(line.split(": ", 1) for line in lines if ": " in line)
    # OpenAI's weights bring their activation along, whatever the options say.
    if "model" not in options or options.get("pretrained", "").strip() == "openai":
        return None
    forced = options.get("force_quick_gelu", "").strip() == "True"
    is_quick = forced or options["model"].strip().endswith("-quickgelu")
    return Said("quick_gelu" if is_quick else "gelu", "as its run's params.txt says")


def _is(value: Any) -> bool:
    return isinstance(value, dict)

"""Load and export weights: OpenAI's archives, OpenCLIP's checkpoints, plain state dicts."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.models.archive import is_torchscript, read_torchscript
from clipfast.models.clip import CLIP, create_model
from clipfast.models.config import list_models
from clipfast.models.positions import resize_grid

# Facts about the model that OpenAI's archives store among the buffers.
_METADATA = ("input_resolution", "context_length", "vocab_size")
_WRAPPERS = ("module.", "_orig_mod.")
_IMAGE_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")
_SHOWN = 4

Shapes = dict[str, tuple[int, ...]]


def load_weights(model: CLIP, path: str | os.PathLike, *, resize_positions: bool = False) -> None:
    """Fill a model with the weights of a file, cast to the model's dtypes.

    Nothing that the file contains is run: pickles are read by `torch.load(weights_only=True)`,
    TorchScript archives through their tensors alone. The model changes only if everything fits.
    Load before `deepspeed.initialize`: a model that ZeRO-3 has partitioned has no shapes to fill.

    Args:
        model: what to fill; its parameters must have memory (no meta tensors).
        path: OpenAI's TorchScript `.pt`; OpenCLIP's `.pt`, bare or under "state_dict", names
            with or without "module."; a state dict of this package; or `.safetensors`.
        resize_positions: interpolate the image positions (bicubic) where the file was trained at
            another image size, as when ViT-L/14@336px starts from ViT-L/14.

    Raises:
        ValueError: if the file does not exist, cannot be read, or holds no CLIP; or if names or
            shapes differ, with the first of them, how many, and the model they belong to.
    """
    path = Path(path)
    state = _read(path)
    target = model.state_dict()
    if any(tensor.is_meta for tensor in target.values()):
        raise ValueError("the model is on the meta device: call model.to_empty(device=...) first")
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(target["logit_scale"].shape)
    if resize_positions:
        for name in _IMAGE_POSITIONS:
            if name in state and name in target:
                state[name] = resize_grid(state[name], target[name].shape)
    _check(model, path, _shapes(state), _shapes(target))
    model.load_state_dict(state)


def export(model_or_state_dict: nn.Module | Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Write weights under the names that OpenCLIP and OpenAI use, `logit_scale` with shape [].

    The file appears whole or not at all: it is written under a temporary name beside `path`,
    then renamed.

    Args:
        model_or_state_dict: a CLIP model, or its state dict (names with or without "module.");
            parameters that ZeRO-3 has partitioned must be gathered first.
        path: where to write; `.pt` gives a plain state dict, `.safetensors` that format.

    Raises:
        ValueError: for another suffix, or if this is not the state of a whole CLIP model.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    writers: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
        ".pt": _write_pt,
        ".safetensors": _write_safetensors,
    }
    if path.suffix not in writers:
        raise ValueError(f"cannot export to {path.name!r}: end the name in .pt or .safetensors")
    is_module = isinstance(model_or_state_dict, nn.Module)
    state = _unwrap(model_or_state_dict.state_dict() if is_module else dict(model_or_state_dict))
    _check_complete(state)
    state = _compact(state)
    state["logit_scale"] = state["logit_scale"].reshape(())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writers[path.suffix](state, temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _check_complete(state: dict[str, Any]) -> None:
    wanted = ("logit_scale", "text_projection", "token_embedding.weight", "visual.conv1.weight")
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ValueError(f"not the state of a CLIP model: it lacks {', '.join(missing)}")
    hollow = [n for n, t in state.items() if t.is_meta or t.numel() == 0]
    if hollow:
        raise ValueError(
            f"{len(hollow)} tensors hold no values ({_some(hollow)}): gather partitioned "
            "parameters before the export"
        )


def _compact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that own their memory: a slice of a flat buffer would be saved with all of it."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def _write_pt(state: dict[str, Tensor], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    _safetensors().save_file(state, path, metadata={"format": "pt"})


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("this needs safetensors: pip install safetensors") from error
    return safetensors.torch


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no weights at {path}: there is no such file")
    if path.suffix == ".safetensors":
        checkpoint = _read_with(path, _safetensors().load_file, "safetensors file")
    elif is_torchscript(path):
        checkpoint = read_torchscript(path)
    else:
        checkpoint = _read_with(path, _torch_load, "file of torch.save")
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("state_dict"), Mapping):
        checkpoint = checkpoint["state_dict"]
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a state dict")
    odd = [str(n) for n, t in checkpoint.items() if not isinstance(t, torch.Tensor)]
    if odd:
        raise ValueError(f"{path} holds no state dict: these are no tensors: {_some(odd)}")
    state = _unwrap(checkpoint)
    return {name: tensor for name, tensor in state.items() if name not in _METADATA}


def _read_with(path: Path, read: Callable[[Path], Any], kind: str) -> Any:
    try:
        return read(path)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"cannot read {path} as a {kind}: {error}") from error


def _torch_load(path: Path) -> Any:
    # Mapped, so that the optimizer state of a training checkpoint is never read from disk.
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _unwrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    while prefix := next((w for w in _WRAPPERS if all(n.startswith(w) for n in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _some(items: Iterable[str]) -> str:
    items = list(items)
    rest = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest


def _check(model: CLIP, path: Path, given: Shapes, wanted: Shapes) -> None:
    if given == wanted:
        return
    if not given.keys() & wanted.keys():
        raise ValueError(f"{path} holds no CLIP weights: its names are {_some(given)}")
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    differing = [
        f"{name} is {list(given[name])} in the file, {list(wanted[name])} in the model"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    problems = [
        f"{len(items)} {what}: {_some(items)}"
        for what, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", differing),
        )
        if items
    ]
    raise ValueError(
        f"{path} does not fit {model.config.name}. {'; '.join(problems)}. {_identify(given)}"
    )


def _identify(given: Shapes) -> str:
    """A sentence that names the model whose parameters have these names and shapes."""
    scale = {"logit_scale": (1,)} if "logit_scale" in given else {}
    items = set({**given, **scale}.items())
    scores: dict[str, float] = {}
    for name in list_models():
        with torch.device("meta"):
            own = set(_shapes(create_model(name).state_dict()).items())
        scores[name] = len(items & own) / len(items | own)
    best = max(scores, key=scores.__getitem__)
    if scores[best] == 1.0:
        return f"The file's shapes are those of {best!r}: use create_model({best!r})."
    if scores[best] >= 0.5:
        return f"The nearest model is {best!r}, with {scores[best]:.0%} of the shapes."
    return "Its shapes are near those of no model in list_models()."

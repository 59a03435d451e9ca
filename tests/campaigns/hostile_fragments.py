"""Checkpoints whose files are safetensors and no whole checkpoint, each with a true manifest."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def _first(tensors: Tensors, least: int = 2) -> tuple[str, int, int]:
    """A fragment: its parameter, start and stop."""
    for full in sorted(tensors):
        key, _, rest = full.partition("/")
        name, _, stretch = rest.rstrip("]").partition("[")
        if key == "weight":
            start, stop = map(int, stretch.split(":"))
            if stop - start >= least:
                return name, start, stop
    raise ValueError(f"no fragment of {least} elements")


def _keys_of(tensors: Tensors, name: str, start: int, stop: int) -> dict[str, str]:
    """The full names of a fragment's tensors, by key."""
    end = f"/{name}[{start}:{stop}]"
    return {full.removesuffix(end): full for full in tensors if full.endswith(end)}


def _renamed(tensors: Tensors, name: str, start: int, stop: int, new: str) -> None:
    for key, full in _keys_of(tensors, name, start, stop).items():
        tensors[f"{key}/{new}"] = tensors.pop(full)


def _missing(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    for full in _keys_of(tensors, name, start, stop).values():
        del tensors[full]
    return name


def _cut(tensors: Tensors) -> str:
    """The second half of a parameter is not there."""
    name, start, stop = _first(tensors, 1024)
    middle = (start + stop) // 512 * 256
    for key, full in _keys_of(tensors, name, start, stop).items():
        value = tensors.pop(full)
        blocks = (middle - start) // 256
        part = value if key == "step" else value[:, :blocks] if key == "exponents" else None
        part = value[: middle - start] if part is None else part
        tensors[f"{key}/{name}[{start}:{middle}]"] = part.contiguous()
    return name


def _hole(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    _renamed(tensors, name, start, stop, f"{name}[{start + 256}:{stop + 256}]")
    return name


def _overlap(tensors: Tensors) -> str:
    name, start, stop = _first(tensors, 300)
    for key, full in _keys_of(tensors, name, start, stop).items():
        value = tensors[full]
        part = value if key == "step" else value[..., :1] if key == "exponents" else value[:256]
        tensors[f"{key}/{name}[{start}:{start + 256}]"] = part.clone()
    return name


def _off_the_grid(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    _renamed(tensors, name, start, stop, f"{name}[{start + 1}:{stop + 1}]")
    return name


def _backwards(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    _renamed(tensors, name, start, stop, f"{name}[{stop + 256}:{start}]")
    return name


def _huge(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    _renamed(tensors, name, start, stop, f"{name}[{start}:999999999999999999]")
    return name


def _too_many_digits(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    _renamed(tensors, name, start, stop, f"{name}[{start}:{'9' * 5000}]")
    return name


def _other_parameter(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    _renamed(tensors, name, start, stop, f"some.other[{start}:{stop}]")
    return name


def _leads_out(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    for key, full in _keys_of(tensors, name, start, stop).items():
        tensors[f"../../{key}/{name}"] = tensors.pop(full)
    return "is no name"


def _unknown_key(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    tensors[f"__reduce__/{name}[{start}:{stop}]"] = torch.zeros(stop - start)
    return "__reduce__"


def _shape(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    full = f"weight/{name}[{start}:{stop}]"
    tensors[full] = tensors[full][:-1].clone()
    return full


def _two_dimensions(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    full = f"weight/{name}[{start}:{stop}]"
    tensors[full] = tensors[full][None]
    return full


def _type(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    full = f"weight/{name}[{start}:{stop}]"
    tensors[full] = tensors[full].to(torch.int64)
    return full


def _no_weight(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    del tensors[f"weight/{name}[{start}:{stop}]"]
    return name


def _half_a_state(tensors: Tensors) -> str:
    name, start, stop = _first(tensors)
    del tensors[f"exp_avg/{name}[{start}:{stop}]"]
    return name


def _buffer_of_another_shape(tensors: Tensors) -> str:
    full = next(name for name in sorted(tensors) if name.startswith("buffer/"))
    tensors[full] = torch.zeros(3, 3, 3)
    return full


def _buffer_missing(tensors: Tensors) -> str:
    full = next(name for name in sorted(tensors) if name.startswith("buffer/"))
    del tensors[full]
    return full.removeprefix("buffer/")


def _buffer_of_another_name(tensors: Tensors) -> str:
    tensors["buffer/__class__"] = torch.zeros(3)
    return "__class__"


# By what is wrong: changes the tensors of a file, and returns what the refusal must name.
FRAGMENTS: dict[str, Callable[[Tensors], str]] = {
    "a fragment is missing": _missing,
    "the end of a parameter is missing": _cut,
    "the beginning of a parameter is missing": _hole,
    "fragments overlap": _overlap,
    "a fragment divides a block": _off_the_grid,
    "a fragment ends before it begins": _backwards,
    "a fragment behind the parameter's end": _huge,
    "a number of 5,000 digits": _too_many_digits,
    "a parameter of another name": _other_parameter,
    "a name that leads out of the folder": _leads_out,
    "a key that there is not": _unknown_key,
    "a tensor of another shape": _shape,
    "a tensor of two dimensions": _two_dimensions,
    "a tensor of another type": _type,
    "no weight": _no_weight,
    "half a state": _half_a_state,
    "a buffer of another shape": _buffer_of_another_shape,
    "a buffer is missing": _buffer_missing,
    "a buffer of another name": _buffer_of_another_name,
}


def spoil(path: Path, how: str) -> str:
    """Change a file.

    Args:
        path: of a checkpoint's file.
        how: of ``FRAGMENTS``.

    Returns:
        What the refusal must name.
    """
    tensors = load_file(path)
    named = FRAGMENTS[how](tensors)
    path.unlink()
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return named

"""What a checkpoint's safetensors files hold: fragments of named parameters, and buffers.

A fragment is a stretch of a parameter, its elements counted in the order of the contiguous tensor.
Each of its tensors has the name

    KEY/PARAMETER[START:STOP]        N = STOP - START

    key             holds                                             shape
    weight          the weight that the optimizer updates             [N]
    master          fp32: the exact weight, where weight is half      [N]
    remainder       int16: with a bf16 weight the exact one           [N]
    exp_avg         the first moment                                  [N]
    exp_avg_sq      the second moment, fp32                           [N]
    exp_avg_sqrt    or its root, bf16 or fp16                         [N]
    exponents       int8, of fp16 moments in blocks of 256            [2, ceil(N / 256)]
    step            fp32: updates made                                []

START is a multiple of 256, and STOP is one or the parameter's end, so that no block is divided.
The fragments of a parameter lie end to end, in any files. ``buffer/NAME`` holds a buffer whole.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

BLOCK = 256
_NAME = re.compile(
    r"(?P<key>weight|master|remainder|exp_avg|exp_avg_sq|exp_avg_sqrt|exponents|step)"
    r"/(?P<name>[^\[\]]+)\[(?P<start>\d{1,18}):(?P<stop>\d{1,18})\]"
)
_BUFFER = "buffer/"
_MOMENTS = ("exp_avg", "exp_avg_sq", "exp_avg_sqrt")
_TYPES = {
    "weight": ("F32", "BF16", "F16"),
    "master": ("F32",),
    "remainder": ("I16",),
    "exp_avg": ("F32", "BF16", "F16"),
    "exp_avg_sq": ("F32",),
    "exp_avg_sqrt": ("BF16", "F16"),
    "exponents": ("I8",),
    "step": ("F32",),
}
# The sets of keys that there are, each with the weight and what belongs to it.
_STATISTICS: tuple[set[str], ...] = (
    set(),
    {"step", "exp_avg", "exp_avg_sq"},
    {"step", "exp_avg", "exp_avg_sqrt"},
    {"step", "exp_avg", "exp_avg_sqrt", "exponents"},
)


class Unfit(ValueError):
    """Files do not hold what a checkpoint of this model holds; the message says where."""


class Stretch(NamedTuple):
    """A part of a parameter, read.

    Attributes:
        start: of its first element in the parameter.
        tensors: by key.
    """

    start: int
    tensors: dict[str, Tensor]


def header_problem(path: Path) -> str:
    """What is wrong with a file alone, by its header; empty where nothing is.

    Raises:
        OSError: it cannot be read.
    """
    try:
        SavedTensors([path], whole=False)
    except Unfit as error:
        return str(error)
    return ""


def fragment_name(key: str, name: str, start: int, stop: int) -> str:
    """Of one tensor of a fragment."""
    return f"{key}/{name}[{start}:{stop}]"


def buffer_name(name: str) -> str:
    """Of a buffer."""
    return _BUFFER + name


@dataclass
class _Fragment:
    path: Path
    name: str
    start: int
    stop: int
    # By key: type and shape as the header gives them.
    tensors: dict[str, tuple[str, list[int]]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return f"{self.name}[{self.start}:{self.stop}]"


class SavedTensors:
    """The files of a checkpoint, their headers read and compared with each other.

    Args:
        paths: of its safetensors files.
        whole: these are all of them.

    Raises:
        Unfit: a file is none, or names what no checkpoint holds, or two claim the same elements.
        OSError: one cannot be read.
    """

    def __init__(self, paths: Iterable[Path], *, whole: bool = True) -> None:
        self._open: dict[Path, Any] = {}
        self._fragments: dict[str, list[_Fragment]] = {}
        self._buffers: dict[str, Path] = {}
        for path in paths:
            self._index(path)
        for name, fragments in self._fragments.items() if whole else ():
            fragments.sort(key=lambda fragment: fragment.start)
            _check_order(name, fragments)

    def check(self, sizes: Mapping[str, int], buffers: Mapping[str, tuple[int, ...]]) -> None:
        """Whether they hold a model, whole.

        Args:
            sizes: number of elements of each parameter.
            buffers: shape of each buffer.

        Raises:
            Unfit: something is missing, too much or of another size.
        """
        _compare("parameter", sizes, self._fragments)
        _compare("buffer", buffers, self._buffers)
        for name, size in sizes.items():
            fragments = self._fragments[name]
            if fragments[-1].stop != size:
                last = fragments[-1]
                kind = "end behind" if last.stop > size else "are missing before"
                raise Unfit(
                    f"{last.path}: the fragments of {name} {kind} its {size} elements, the last is "
                    f"{last.text}"
                )
        for name, shape in buffers.items():
            path = self._buffers[name]
            found = tuple(self._file(path).get_slice(buffer_name(name)).get_shape())
            if found != shape:
                raise Unfit(f"{path}: {buffer_name(name)} has shape {found}, not {shape}")

    @property
    def parameters(self) -> dict[str, int]:
        """The number of elements of each parameter."""
        return {name: fragments[-1].stop for name, fragments in self._fragments.items()}

    def described(self) -> Iterator[tuple[str, int, int, dict[str, str], Path]]:
        """Every fragment: name, start, stop, type by key, file."""
        for name, fragments in self._fragments.items():
            for f in fragments:
                types = {key: kind for key, (kind, _) in f.tensors.items()}
                yield name, f.start, f.stop, types, f.path

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every buffer."""
        for name, path in self._buffers.items():
            yield name, self._file(path).get_tensor(buffer_name(name))

    def read(self, name: str, start: int, stop: int) -> Iterator[Stretch]:
        """A stretch of a parameter, in the parts that fragments divide it into.

        Args:
            name: of the parameter.
            start: a multiple of 256.
            stop: likewise, or its end.
        """
        fragments = self._fragments[name]
        first = bisect_right([fragment.start for fragment in fragments], start) - 1
        for fragment in fragments[first:]:
            begin, end = max(start, fragment.start), min(stop, fragment.stop)
            if begin >= end:
                return
            yield Stretch(begin, self._read(fragment, begin, end))

    def _read(self, fragment: _Fragment, begin: int, end: int) -> dict[str, Tensor]:
        file, tensors = self._file(fragment.path), {}
        first, last = begin - fragment.start, end - fragment.start
        for key in fragment.tensors:
            name = fragment_name(key, fragment.name, fragment.start, fragment.stop)
            if key == "step":
                tensors[key] = file.get_tensor(name)
            elif key == "exponents":
                tensors[key] = file.get_slice(name)[:, first // BLOCK : -(-last // BLOCK)]
            else:
                tensors[key] = file.get_slice(name)[first:last]
        return tensors

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            from safetensors import safe_open

            try:
                self._open[path] = safe_open(path, "pt")
            except OSError:
                raise
            except Exception as error:  # safetensors' own error is none of Python's classes
                raise Unfit(f"{path} is no safetensors file: {error}") from error
        return self._open[path]

    def _index(self, path: Path) -> None:
        file = self._file(path)
        found: dict[tuple[str, int, int], _Fragment] = {}
        for full in file.keys():  # noqa: SIM118 - it is no dictionary
            saved = file.get_slice(full)
            if full.startswith(_BUFFER):
                name = full.removeprefix(_BUFFER)
                if name in self._buffers:
                    raise Unfit(f"{path}: {full} is in {self._buffers[name]} too")
                self._buffers[name] = path
                continue
            match = _NAME.fullmatch(full)
            if match is None:
                raise Unfit(f"{path}: {full[:200]!r} is no name of a checkpoint's tensor")
            key, name = match["key"], match["name"]
            start, stop = int(match["start"]), int(match["stop"])
            fragment = found.setdefault((name, start, stop), _Fragment(path, name, start, stop))
            fragment.tensors[key] = (saved.get_dtype(), saved.get_shape())
        for fragment in found.values():
            _check(fragment)
            self._fragments.setdefault(fragment.name, []).append(fragment)


def _compare(kind: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    missing, other = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise Unfit(f"the checkpoint lacks {len(missing)} {kind}(s): {', '.join(missing[:3])}")
    if other:
        raise Unfit(
            f"the checkpoint has {len(other)} {kind}(s) that the model does not have: "
            f"{', '.join(other[:3])}"
        )


def _check(fragment: _Fragment) -> None:
    """Raise unless its tensors are those of a fragment."""
    path, text, keys = fragment.path, fragment.text, set(fragment.tensors)
    count = fragment.stop - fragment.start
    if fragment.start % BLOCK or count <= 0:
        raise Unfit(
            f"{path}: the fragment {text} is expected to begin at a multiple of {BLOCK} and to end "
            "behind it"
        )
    statistics = keys - {"weight", "master", "remainder"}
    if "weight" not in keys or statistics not in _STATISTICS or {"master", "remainder"} <= keys:
        raise Unfit(f"{path}: the fragment {text} has {', '.join(sorted(keys))}, which is no state")
    for key, (kind, shape) in fragment.tensors.items():
        expected = {"exponents": [2, -(-count // BLOCK)], "step": []}.get(key, [count])
        if kind not in _TYPES[key] or shape != expected:
            raise Unfit(
                f"{path}: {key}/{text} is expected of shape {expected} and type "
                f"{' or '.join(_TYPES[key])}, it has {shape} and {kind}"
            )
    kinds = {fragment.tensors[key][0] for key in _MOMENTS if key in keys}
    if len(kinds) > 1 or ("F16" in kinds) != ("exponents" in keys):
        raise Unfit(f"{path}: the moments of {text} are of types that do not go together")


def _check_order(name: str, fragments: list[_Fragment]) -> None:
    """Raise unless they lie end to end from the first element on."""
    end = 0
    for before, fragment in zip([None, *fragments], fragments, strict=False):
        if fragment.start < end and before is not None:
            raise Unfit(f"{fragment.path}: {fragment.text} overlaps {before.text} of {before.path}")
        if fragment.start > end:
            raise Unfit(
                f"{fragment.path}: elements {end} to {fragment.start} of {name} are missing before "
                f"{fragment.text}"
            )
        if fragment.stop % BLOCK and fragment is not fragments[-1]:
            raise Unfit(f"{fragment.path}: {fragment.text} ends within a block of {BLOCK}")
        end = fragment.stop

"""Checkpoints of before named fragments: DeepSpeed's own files, read as if they were fragments.

At stage 0 one file holds every parameter's state. At stages 1 and 2 a group of parameters lies end
to end in a flat tensor, cut into equal parts of an even number of elements. At stage 3 each
parameter is cut into equal parts, and a rank's parts lie end to end. fp16 statistics of stages 1 to
3 have their blocks counted from the beginning of a rank's part: they are decoded and rounded to
nearest in the blocks of today. What that changes is counted; it is nothing unless neighbours differ
by a factor of 2^28.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipfast.checkpoint import load_trusted
from clipfast.checkpoint.fragments import Stretch, Unfit
from clipfast.ops.adamw import BLOCK, decode, encode

_MOMENTS = ("exp_avg", "exp_avg_sq", "exp_avg_sqrt")


class _Part(NamedTuple):
    """A stretch of a parameter in a rank's flat tensor."""

    start: int
    stop: int
    rank: int
    flat: int
    offset: int


class EarlierTensors:
    """What DeepSpeed wrote, by the parameters' names.

    Args:
        folder: of the checkpoint.
        order: names of the parameters of each group, in the optimizer's order.

    Attributes:
        state: counters and the loss scale, as ``EngineContents.state`` gives them.
        rounded: statistics that have another value in the blocks of today, so far.

    Raises:
        Refused: a file would run something.
        Unfit: the files are not those of a checkpoint.
        OSError: one cannot be read.
    """

    def __init__(self, folder: Path, order: list[list[str]]) -> None:
        self._folder = folder
        self._order = order
        self._model = self._load("mp_rank_00_model_states.pt", "model_states")
        self._ranks = int(self._model["dp_world_size"])
        self._stage = int(self._model["ds_config"]["zero_optimization"]["stage"])
        self._states = lru_cache(2)(self._load_states)
        self.rounded = 0
        self._parts: dict[str, list[_Part]] = {}
        self._sizes: dict[str, int] = {}
        if self._stage:
            groups = [dict(shapes) for shapes in self._model["param_shapes"]]
            self._sizes = {n: shape.numel() for group in groups for n, shape in group.items()}
            (self._place_at_stage_3 if self._stage == 3 else self._place_flat)(groups)
            self._numbers: dict[str, int] = {}
        else:
            names = [name for group in order for name in group]
            self._numbers = {name: number for number, name in enumerate(names)}
            self._sizes = {name: self._model["module"][name].numel() for name in names}
        self.state = {"counters": self._counters(), "loss_scale": self._loss_scale()}

    def check(self, sizes: Mapping[str, int], buffers: Mapping[str, tuple[int, ...]]) -> None:
        """As of ``SavedTensors``."""
        if dict(sizes) != self._sizes:
            names = sorted(set(sizes.items()) ^ set(self._sizes.items()))
            raise Unfit(
                f"{self._folder} was saved of other parameters than the model's: {names[:4]}"
            )
        found = {name: tuple(value.shape) for name, value in self.buffers()}
        if found != dict(buffers):
            raise Unfit(f"{self._folder} has buffers {found}, the model's are {dict(buffers)}")

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """As of ``SavedTensors``."""
        for name in self._model["buffer_names"]:
            if name in self._model["module"]:
                yield name, self._model["module"][name]

    def read(self, name: str, start: int, stop: int) -> Iterator[Stretch]:
        """As of ``SavedTensors``, in one stretch.

        Raises:
            Unfit: a tensor ends before it.
        """
        tensors = (self._in_parts if self._stage else self._at_stage_0)(name, start, stop)
        for key, value in tensors.items():
            if key not in ("step", "exponents") and len(value) != stop - start:
                raise Unfit(
                    f"{self._folder}: {key} of {name} has {len(value)} of the elements {start} to "
                    f"{stop}"
                )
        yield Stretch(start, self._in_blocks(tensors) if self._stage else tensors)

    def _in_parts(self, name: str, start: int, stop: int) -> dict[str, Tensor]:
        pieces: dict[str, list[Tensor]] = {}
        for part in self._parts[name]:
            first, last = max(start, part.start), min(stop, part.stop)
            if first < last:
                at = part.offset + first - part.start
                for key, value in self._piece(part, at, at + last - first).items():
                    pieces.setdefault(key, []).append(value)
        return {
            key: values[0] if key == "step" else torch.cat(values) for key, values in pieces.items()
        }

    def _at_stage_0(self, name: str, start: int, stop: int) -> dict[str, Tensor]:
        saved, number = self._model["optimizer"], self._numbers[name]
        base = saved.get("optimizer_state_dict", saved)
        weight = self._model["module"][name]
        if "fp32_groups" in saved:
            masters = [master for group in saved["fp32_groups"] for master in group]
            weight = masters[number]
        tensors = {"weight": weight.reshape(-1)[start:stop]}
        for key, value in base["state"].get(number, {}).items():
            if key == "exponents":
                tensors[key] = value[:, start // BLOCK : -(-stop // BLOCK)]
            elif key == "step":
                tensors[key] = torch.as_tensor(value, dtype=torch.float32)
            else:
                tensors[key] = value.reshape(-1)[start:stop]
        return tensors

    def _piece(self, part: _Part, begin: int, end: int) -> dict[str, Tensor]:
        """A stretch of a rank's flat tensors; statistics in blocks decoded."""
        saved = self._states(part.rank)
        key = "fp32_flat_groups" if self._stage == 3 else "single_partition_of_fp32_groups"
        base = saved["optimizer_state_dict" if self._stage == 3 else "base_optimizer_state"]
        tensors = {"weight": saved[key][part.flat].detach()[begin:end]}
        state = base["state"].get(part.flat, {})
        for key, value in state.items():
            if key == "step":
                tensors[key] = torch.as_tensor(value, dtype=torch.float32)
            elif key in _MOMENTS and "exponents" in state:
                first = begin // BLOCK * BLOCK
                row = state["exponents"][int(key != "exp_avg")]
                exponents = row[first // BLOCK : -(-end // BLOCK)]
                tensors[key] = decode(value[first:end].clone(), exponents)[begin - first :]
            elif key != "exponents":
                tensors[key] = value[begin:end]
        return tensors

    def _in_blocks(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decoded fp16 statistics in blocks that begin with the stretch."""
        if "exp_avg_sqrt" not in tensors or tensors["exp_avg_sqrt"].dtype is not torch.float32:
            return tensors
        exponents = []
        for key in ("exp_avg", "exp_avg_sqrt"):
            tensors[key], made = encode(value := tensors[key], torch.float16)
            assert made is not None
            self.rounded += int((decode(tensors[key], made) != value).sum())
            exponents.append(made)
        tensors["exponents"] = torch.stack(exponents)
        return tensors

    def _place_flat(self, groups: list[dict[str, torch.Size]]) -> None:
        for number, group in enumerate(groups):
            total = sum(shape.numel() for shape in group.values())
            size = -(-total // (2 * self._ranks)) * 2
            begin = 0
            for name, shape in group.items():
                end = begin + shape.numel()
                for rank in range(begin // size, -(-end // size)):
                    first, last = max(begin, rank * size), min(end, (rank + 1) * size)
                    part = _Part(first - begin, last - begin, rank, number, first - rank * size)
                    self._parts.setdefault(name, []).append(part)
                begin = end

    def _place_at_stage_3(self, groups: list[dict[str, torch.Size]]) -> None:
        flats = [flat.numel() for flat in self._states(0)["fp32_flat_groups"]]
        flat, offset = 0, 0
        for name, shape in (item for group in groups for item in group.items()):
            size = -(-shape.numel() // self._ranks)
            if offset == flats[flat]:
                flat, offset = flat + 1, 0
            self._parts[name] = [
                _Part(rank * size, min((rank + 1) * size, shape.numel()), rank, flat, offset)
                for rank in range(self._ranks)
                if rank * size < shape.numel()
            ]
            offset += size

    def _counters(self) -> dict[str, int]:
        names = ("global_steps", "global_samples", "skipped_steps")
        return {name: int(self._model[name]) for name in names if name in self._model}

    def _loss_scale(self) -> dict[str, Any]:
        if not self._stage:
            saved = self._model["optimizer"]
            keys = ("cur_scale", "cur_iter", "last_overflow_iter")
            return {key: saved[key] for key in keys if key in saved}
        scaler = self._states(0).get("loss_scaler")
        numbers = vars(scaler) if scaler is not None else {}
        return {key: value for key, value in numbers.items() if type(value) in (int, float, bool)}

    def _load_states(self, rank: int) -> Any:
        pattern = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        return self._load(pattern, "optim_states")["optimizer_state_dict"]

    def _load(self, name: str, kind: str) -> Any:
        found = sorted(self._folder.glob(f"*{name}"))
        if not found and kind == "model_states":
            found = [self._folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"]
        if not found:
            raise Unfit(f"{self._folder} has no file *{name}")
        return load_trusted(found[0])

"""What a rank saves of a DeepSpeed engine, by the parameters' names, and how it comes back.

    tensors = contents.tensors()     # views of this rank's part; whoever keeps them copies them
    state = contents.state()         # JSON, the same on every rank
    ...
    contents.load(saved, state)      # into an engine of any number of ranks, at any stage of ZeRO

``clipfast.checkpoint.fragments`` has the names and what they mean.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clipfast.checkpoint.fragments import (
    SavedTensors,
    Stretch,
    Unfit,
    buffer_name,
    fragment_name,
)
from clipfast.engine.deepspeed.earlier import EarlierTensors
from clipfast.engine.deepspeed.places import Holder, adam_of, holders, shapes_of
from clipfast.engine.launch import Process
from clipfast.models.metadata import KEY, describe
from clipfast.models.weights import architecture_of
from clipfast.ops.adamw import BLOCK
from clipfast.optim import parameter_groups
from clipfast.optim.carry import empty_state, put_statistics, put_weight
from clipfast.optim.states import master_dtype

_KEYS = ("master", "remainder", "exp_avg", "exp_avg_sq", "exp_avg_sqrt", "exponents", "step")
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class Saved(Protocol):
    """Where a checkpoint's tensors come from: ``SavedTensors``, or files of earlier versions."""

    def check(self, sizes: dict[str, int], buffers: dict[str, tuple[int, ...]]) -> None:
        """Raise Unfit where they do not hold a model of these parameters and buffers."""

    def read(self, name: str, start: int, stop: int) -> Any:
        """The stretches of a part of a parameter."""

    def buffers(self) -> Any:
        """Name and tensor of each buffer."""


class EngineContents:
    """The state of a run's engine, as a checkpoint holds it.

    Args:
        engine: a DeepSpeed engine.
        process: this rank.
    """

    def __init__(self, engine: Any, process: Process) -> None:
        self._engine = engine
        self._process = process

    def tensors(self) -> dict[str, Tensor]:
        """What this rank writes, as views; over all ranks each element is there once."""
        found = {}
        for holder in self._own_share(holders(self._engine)):
            state = adam_of(self._engine).state.get(holder.tensor, {})
            if unknown := set(state) - set(_KEYS):
                raise TypeError(
                    f"expected an optimizer whose state is that of FusedAdamW, got one with "
                    f"{', '.join(sorted(unknown))}"
                )
            for place in holder.places:
                found.update(_fragment(holder.tensor, state, place))
        if self._process.is_main:
            for name, buffer in self._buffers().items():
                found[buffer_name(name)] = buffer
        return found

    def save(self, folder: str, tag: str, save_latest: bool = False) -> None:
        """Give this rank's tensors to the engine's ``checkpoint_engine``, as a file of a folder.

        Args:
            folder: that the checkpoint's folder lies in.
            tag: the checkpoint's folder.
            save_latest: as DeepSpeed calls it; nothing is written for it.
        """
        name = f"rank{self._process.rank:05d}.safetensors"
        self._engine.checkpoint_engine.save(self.tensors(), f"{folder}/{tag}/{name}")

    def state(self) -> dict[str, Any]:
        """What else there is to save: counters, and the loss scale where there is one."""
        engine = self._engine
        scaler = _loss_scaler(engine)
        return {
            "counters": {name: int(getattr(engine, name)) for name in _COUNTERS},
            "loss_scale": {
                name: value
                for name, value in vars(scaler).items()
                if type(value) in (int, float, bool)
            }
            if scaler is not None
            else {},
            "shapes": {name: list(shape) for name, shape in shapes_of(engine.module).items()},
            "weights": _metadata(engine),
        }

    def load(self, saved: Saved, state: dict[str, Any]) -> None:
        """Fill the engine. A collective.

        Args:
            saved: the tensors.
            state: as ``state`` gave it.

        Raises:
            Unfit: they are not those of this model.
        """
        engine = self._engine
        buffers = self._buffers()
        sizes = {name: math.prod(shape) for name, shape in shapes_of(engine.module).items()}
        _check_shapes(state, shapes_of(engine.module))
        saved.check(sizes, {name: tuple(buffer.shape) for name, buffer in buffers.items()})
        with torch.no_grad():
            for holder in holders(engine):
                self._fill(holder, saved)
            for name, value in saved.buffers():
                buffers[name].copy_(value)
            _refresh_model(engine)
        _set_counters(engine, state)

    def load_folder(self, folder: Path, files: Iterable[str], state: dict[str, Any]) -> list[str]:
        """Fill the engine from a checkpoint's folder, of this version or an earlier one.

        Args:
            folder: of the checkpoint.
            files: names of its files; none for those of earlier versions that list none.
            state: what the manifest has of ``state``; empty where DeepSpeed wrote the files.

        Returns:
            Lines for a person.

        Raises:
            Unfit: the files are not those of this model.
            Refused: one would run something.
            OSError: one cannot be read.
        """
        if state:
            self.load(SavedTensors(folder / name for name in sorted(files)), state)
            return []
        earlier = EarlierTensors(folder, self._order())
        self.load(earlier, earlier.state)
        if not earlier.rounded:
            return []
        return [
            f"{earlier.rounded:,} of Adam's statistics were rounded: an earlier version kept them "
            "in other blocks"
        ]

    def _order(self) -> list[list[str]]:
        """Names of the parameters of each of the optimizer's groups."""
        module = self._engine.module
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        return [[names[id(p)] for p in group["params"]] for group in parameter_groups(module, 0.0)]

    def _own_share(self, found: list[Holder]) -> list[Holder]:
        """Where every rank holds everything, each writes a part of about the same size."""
        if _is_sharded(self._engine):
            return found
        ranks, total = self._process.world_size, sum(h.tensor.numel() for h in found)
        share, before = [], 0
        for holder in found:
            if before * ranks // max(1, total) == self._process.rank:
                share.append(holder)
            before += holder.tensor.numel()
        return share

    def _buffers(self) -> dict[str, Tensor]:
        module = self._engine.module
        kept = module.state_dict().keys()
        return {name: buffer for name, buffer in module.named_buffers() if name in kept}

    def _fill(self, holder: Holder, saved: Saved) -> None:
        adam, tensor = adam_of(self._engine), holder.tensor
        group = adam.param_groups[holder.group]
        stats_dtype = group.get("stats_dtype", torch.float32)
        kept = master_dtype(tensor.dtype, group.get("weights", "fp32"), group.get("weights_dtype"))
        state = empty_state(tensor, stats_dtype, kept)
        steps = set()
        for place in holder.places:
            for part in saved.read(place.name, place.start, place.start + place.count):
                at = place.offset + part.start - place.start
                put_weight(tensor, state, at, part.tensors)
                steps.add(_step_of(part))
                if "exp_avg" in part.tensors:
                    put_statistics(state, at, part.tensors)
        if len(steps) > 1:
            names = f"{holder.places[0].name} to {holder.places[-1].name}"
            raise Unfit(
                f"the parameters from {names} were updated {sorted(steps)} times, and here they "
                "share one count: resume at --zero-stage 0"
            )
        state["step"].fill_(steps.pop() if steps else 0.0)
        adam.state[tensor] = state


def _fragment(holder: Tensor, state: dict[str, Any], place: Any) -> dict[str, Tensor]:
    """The tensors of one place, by their full names."""
    stop = place.start + place.count
    first, last = place.offset, place.offset + place.count
    found = {"weight": holder.detach().view(-1)[first:last]}
    for key in _KEYS:
        if key not in state:
            continue
        value = state[key]
        if key == "step":
            found[key] = value
        elif key == "exponents":
            found[key] = value[:, first // BLOCK : -(-last // BLOCK)]
        else:
            found[key] = value.view(-1)[first:last]
    return {fragment_name(key, place.name, place.start, stop): t for key, t in found.items()}


def _step_of(part: Stretch) -> float:
    return float(part.tensors["step"]) if "step" in part.tensors else 0.0


def _is_sharded(engine: Any) -> bool:
    return int(engine.zero_optimization_stage()) > 0


def _check_shapes(state: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    saved = state.get("shapes", {})
    for name, shape in shapes.items():
        if name in saved and tuple(saved[name]) != shape:
            raise Unfit(f"{name} was saved of shape {saved[name]}, the model's is {list(shape)}")


def _loss_scaler(engine: Any) -> Any:
    """What holds the loss scale in fp16; None where there is nothing to scale."""
    optimizer = engine.optimizer
    found = getattr(optimizer, "loss_scale_config", getattr(optimizer, "loss_scaler", None))
    return found if getattr(found, "dynamic", getattr(found, "dynamic_loss_scale", False)) else None


def _set_counters(engine: Any, state: dict[str, Any]) -> None:
    for name in _COUNTERS:
        setattr(engine, name, state.get("counters", {}).get(name, getattr(engine, name)))
    scaler = _loss_scaler(engine)
    if scaler is not None:
        for name, value in state.get("loss_scale", {}).items():
            if type(getattr(scaler, name, None)) in (int, float, bool):
                setattr(scaler, name, value)


def _refresh_model(engine: Any) -> None:
    """The weights that the model computes with, from those that the optimizer updates."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for number in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp16_groups"):
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for halves, masters in groups:
            for half, master in zip(halves, masters, strict=True):
                half.data.copy_(master.data)


def _metadata(engine: Any) -> dict[str, str]:
    """What a file of the weights says of itself; nothing for a model that is no CLIP of ours."""
    architecture = architecture_of(engine.module)
    if architecture is None:
        return {}
    scalars = {name: start for name, start in architecture.scalars if name != "logit_scale"}
    return {KEY: describe(architecture, scalars, int(engine.global_steps)).to_json()}

"""The parts of a run, each built from its plan, and the place where others are passed in."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from clipfast.data import SyntheticLoader, TrainLoader
from clipfast.data.batch import TrainingData
from clipfast.data.pairs import TrainPairLoader
from clipfast.data.sources import Mixing
from clipfast.engine import progress
from clipfast.engine.agreement import ranks_of, require_same, weights_hash
from clipfast.engine.config import ConfigError, DataConfig
from clipfast.engine.deepspeed.wrap import initialise_engine
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.plan import RunPlan
from clipfast.engine.sources import training_sources
from clipfast.models import CLIP, create_model, load_weights, read_metadata
from clipfast.models.compile import compile_blocks
from clipfast.models.metadata import preprocessing_of
from clipfast.models.shared_norm import share_statistics
from clipfast.storage import Cache, configure
from clipfast.storage.failures import RefusedError, UnreachableError
from clipfast.storage.nearby import nearby
from clipfast.storage.patience import under_way


def build_loader(plan: RunPlan) -> TrainingData:
    """This rank's view of the training data, read from shards or made at random.

    Raises:
        ConfigError: the shards do not fit the run, or an index does not fit its shard.
    """
    config, process = plan.config, plan.process
    configure(config.data.store, _cache(config.data))
    try:
        if (samples := config.data.synthetic) is not None:
            # Random captions need a tower that reads them.
            plan.architecture.captions  # noqa: B018
            return SyntheticLoader(
                samples,
                plan.architecture.vision.image_size,
                config.batch_size,
                rank=process.rank,
                world_size=process.world_size,
                seed=config.seed,
                device=process.device,
                dtype=plan.dtype,
                micro_batch=plan.micro_batch,
            )
        # Without a text tower a pair is a picture and its distortion.
        loader = TrainLoader if plan.architecture.text else TrainPairLoader
        return loader(
            training_sources(config.data.train) or config.data.train,
            plan.architecture.vision.image_size,
            config.batch_size,
            mixing=mixing_of(config.data),
            micro_batch=plan.micro_batch,
            prefetch=config.data.prefetch or None,
            rank=process.rank,
            world_size=process.world_size,
            seed=config.seed,
            fields=config.data.fields,
            select=config.data.select or None,
            scale=config.data.scale,
            decode=config.data.decode,
            captions=config.data.caption_choice,
            caption_tables=config.data.training_captions,
            caption_cache=config.data.caption_cache,
            window=config.data.shuffle_window,
            device=process.device,
            dtype=plan.dtype,
            threads=plan.decode_threads,
            on_error=config.data.on_error,
            max_errors=config.data.max_errors,
            # The run names them, once over all ranks.
            on_skip=lambda skipped: None,
            on_wait=_goes_on,
            together=ranks_of(process),
        )
    except ValueError as error:
        raise ConfigError(f"--data.train: {error}") from error


def _cache(options: DataConfig) -> Cache | None:
    """The cache of shards that the options ask for.

    Raises:
        ConfigError: its folder cannot be used.
    """
    if not options.cache:
        return None
    try:
        return Cache(options.cache, int(options.cache_gb * 1e9))
    except OSError as error:
        raise ConfigError(str(error)) from error


def _goes_on() -> None:
    """A rank that waits for a store is no rank that hangs: the wait has a bound of its own."""
    if under_way():
        progress.again()


def mixing_of(data: DataConfig) -> Mixing:
    """In which shares the sources of ``--data.train`` are mixed."""
    return Mixing(data.weights or None, data.repeats or None, data.epoch_samples or None)


def build_model(plan: RunPlan) -> CLIP:
    """The model in float32 on the CPU, with its starting weights.

    Raises:
        ConfigError: the weights are not those of this model.
    """
    options = plan.config.model
    model = create_model(
        options.name,
        recompute=plan.recompute,
        scalars=plan.architecture.scalars,
        activation=plan.architecture.activation,
    )
    if options.weights:
        try:
            # What is assumed where a file says nothing is the same on every rank: one says it.
            known = None if plan.process.is_main else options.activation
            with nearby(options.weights) as path:
                load_weights(model, path, resize_positions=True, activation=known)
                found = read_metadata(path)
        except (ValueError, UnreachableError, RefusedError) as error:
            raise ConfigError(f"--model.weights: {error}") from error
        if found is not None and plan.process.is_main:
            wanted = preprocessing_of(plan.architecture)
            for difference in found.preprocessing.differences(wanted):
                warnings.warn(f"--model.weights {options.weights}: {difference}", stacklevel=2)
    share_norms(plan, model)
    if plan.compile:
        compile_blocks(model)
    return model


def share_norms(plan: RunPlan, model: nn.Module) -> None:
    """Tell a model's batch norms which pairs they take together. A collective where ranks share:
    every rank makes every group.

    Args:
        plan: of the run.
        model: of the run.
    """
    norm, group = plan.norm, None
    if norm.ranks > 1:
        group = _neighbours(plan.process, norm.ranks)
    share_statistics(model, groups=norm.groups, group=group, once_a_step=norm.once_a_step)


def _neighbours(process: Process, count: int) -> dist.ProcessGroup | None:
    if count == process.world_size:
        # Beside gradients that are on their way: NCCL keeps the order within one group alone.
        return dist.group.WORLD
    made = [
        dist.new_group(list(range(first, first + count)))
        for first in range(0, process.world_size, count)
    ]
    return made[process.rank // count]


@dataclass(frozen=True)
class Builders:
    """How a run's parts are made. A benchmark or a test passes builders of its own:

        Trainer(plan, Builders(optimizer=build_mine)).run()

    Attributes:
        loader: the training data.
        model: in float32 on the CPU.
        optimizer: of the model, which lies on the run's device by then; its learning rate is set at
            every step.
        engine: wraps plan, model and optimizer into what ``train_step`` calls.
    """

    loader: Callable[[RunPlan], TrainingData] = build_loader
    model: Callable[[RunPlan], CLIP] = build_model
    optimizer: Callable[[RunPlan, nn.Module], Optimizer] = build_optimizer
    engine: Callable[[RunPlan, CLIP, Optimizer], Any] = initialise_engine

    def build_engine(self, plan: RunPlan) -> Any:
        """Model, optimizer and engine, in this order.

        Raises:
            ConfigError: the starting weights are not those of this model.
        """
        # Weights stay contiguous: DeepSpeed broadcasts them as bytes and flattens them in that
        # order. The images' channels_last is what convolutions follow.
        model = self.model(plan)
        if plan.process.world_size > 1:
            # DeepSpeed would hand out those of rank 0, and nobody would know.
            require_same(plan.process, {"starting weights": weights_hash(model)})
        model = model.to(plan.process.device)
        return self.engine(plan, model, self.optimizer(plan, model))

"""The parts of a run: model, data, DeepSpeed engine."""

import importlib.util
import logging

import torch

from clipfast.data import TrainLoader
from clipfast.engine.config import Config, ConfigError
from clipfast.engine.deepspeed.half_stage0 import forget_first_step
from clipfast.engine.deepspeed.settings import deepspeed_config
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import build_optimizer
from clipfast.models import CLIP, AttentionPool2d, create_model, load_weights
from clipfast.models.compile import compile_blocks

_THREADS_BESIDE_A_GPU = 4


def build_model(config: Config, checkpoint: str) -> CLIP:
    """The model in float32 on the CPU, with its starting weights.

    Args:
        config: the run.
        checkpoint: its mode of recomputation, resolved.

    Raises:
        ConfigError: the weights are not those of this model.
    """
    model = create_model(config.model.name, checkpoint=checkpoint)
    if config.model.weights:
        try:
            load_weights(model, config.model.weights, resize_positions=True)
        except ValueError as error:
            raise ConfigError(f"--model.weights: {error}") from error
    return model


def build_loader(
    config: Config, process: Process, dtype: torch.dtype, image_size: int
) -> TrainLoader:
    """This rank's view of the training data.

    Raises:
        ConfigError: the shards do not fit the run, or an index does not fit its shard.
    """
    try:
        return TrainLoader(
            config.data.train,
            image_size,
            config.batch_size,
            rank=process.rank,
            world_size=process.world_size,
            seed=config.seed,
            scale=config.data.scale,
            window=config.data.shuffle_window,
            device=process.device,
            dtype=dtype,
            threads=decode_threads(config, process),
        )
    except ValueError as error:
        raise ConfigError(f"--data.train: {error}") from error


def decode_threads(config: Config, process: Process) -> int:
    """CPU threads that read and decode for a rank."""
    if config.data.threads:
        return config.data.threads
    return _THREADS_BESIDE_A_GPU if process.device.type == "cuda" else torch.get_num_threads()


def compiles_blocks(config: Config, process: Process, stage: int, checkpoint: str) -> bool:
    """Whether residual blocks are to be compiled.

    Args:
        config: the run.
        process: this rank.
        stage: of ZeRO.
        checkpoint: the mode, "auto" before it is resolved.

    Raises:
        ConfigError: asked for at ZeRO stage 3, or with selective recomputation.
    """
    if config.model.compile == "auto":
        return (
            process.device.type == "cuda"
            and torch.cuda.get_device_capability(process.device) >= (8, 0)
            and importlib.util.find_spec("triton") is not None
            and stage < 3
            and checkpoint != "selective"
        )
    wanted = config.model.compile == "blocks"
    if wanted and stage == 3:
        raise ConfigError(
            "--model.compile blocks: ZeRO stage 3 gathers parameters in hooks on layers, which "
            "a compiled block would leave out. Pass --model.compile none, or --zero-stage 2"
        )
    if wanted and checkpoint == "selective":
        raise ConfigError(
            "--model.compile blocks: a compiled block keeps what its compiler chooses, no less in "
            "selective mode. Pass --model.checkpoint full, or --model.compile none"
        )
    return wanted


def initialise_engine(config: Config, process: Process, dtype: torch.dtype, model: CLIP):
    """Wrap the model and its optimizer in a DeepSpeed engine."""
    import deepspeed

    # Its warnings here are about choices made on purpose, such as an optimizer of our own.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Weights stay contiguous: DeepSpeed broadcasts them as bytes and flattens them in that order.
    # The images' channels_last is what convolutions follow.
    model = model.to(process.device)
    optimizer = build_optimizer(config, process, dtype, model)
    ds_config = deepspeed_config(config, dtype, process.world_size)
    stage = ds_config["zero_optimization"]["stage"]
    if stage == 3:
        # It reads its projections' weights without calling them: gather all of them at its door.
        deepspeed.utils.set_z3_leaf_modules(model, [AttentionPool2d], raise_if_not_found=False)
    if compiles_blocks(config, process, stage, model.config.resolved_checkpoint):
        compile_blocks(model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=ds_config,
    )
    forget_first_step(engine)
    return engine


def reapply_options(config: Config, engine) -> None:
    """Set the optimizer's options again after a checkpoint has brought its own, so that a resumed
    run obeys its command line."""
    options = config.optimizer
    for group in engine.optimizer.param_groups:
        group["betas"] = (options.beta1, options.beta2)
        group["eps"] = options.eps
        if group["weight_decay"]:
            group["weight_decay"] = options.weight_decay
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = options.clip_norm

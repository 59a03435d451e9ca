"""What a run does, decided once from its configuration and its process, and read everywhere.

    plan = decide(config, process)
    plan = resolve_recomputation(plan, loader)   # last: it measures the memory that is free

An option such as ``--zero-stage auto`` is looked at here and nowhere else. The parts of the engine
take the plan.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clipfast.devices import PlannedGpu
from clipfast.engine.config import Config, ConfigError, OptimizerConfig, Precision
from clipfast.engine.launch import Process, cpu_threads
from clipfast.engine.norms import NormPlan, plan_norms
from clipfast.loss import Objective, get_objective
from clipfast.loss.distributed import VARIABLE, hides_on_a_cpu
from clipfast.models import Architecture
from clipfast.models.catalogue import get_config
from clipfast.models.recompute import MODES
from clipfast.models.towers import tower_of
from clipfast.ops.registry import runs_triton
from clipfast.storage.paths import join

_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}
_THREADS_BESIDE_A_GPU = 4


@dataclass(frozen=True)
class RunPlan:
    """The decisions of a run on one of its ranks; see ``decide``.

    Attributes:
        config: the options. Those that ask for a decision are read through the other attributes.
        process: this rank.
        architecture: of the model, with the scalars of the objective.
        folder: where the run writes.
        dtype: of weights and activations.
        uses_tf32: a GPU multiplies float32 matrices as TF32.
        stage: of ZeRO.
        local_batch: pairs of the global batch on a rank.
        micro_batches: parts that a rank's share is encoded in.
        optimizer_holds_masters: the optimizer gets bf16 weights and keeps what makes them exact;
            DeepSpeed keeps no float32 masters.
        sums_in_float32: half-precision gradients of several micro-batches are added up in float32.
        decode_threads: CPU threads that read and decode.
        objective: what is minimised.
        recompute: what residual blocks keep for the backward pass: none, selective or full; auto
            until ``resolve_recomputation`` has measured.
        compile: residual blocks are compiled.
        norm: which pairs a batch norm takes together.
        keep_graphs: micro-batches that are encoded once; None: ``auto``, until
            ``resolve_memory`` has measured.
        searches_micro_batch: ``--micro-batch auto``, until then; ``micro_batches`` is 1 so long.
        recompute_note: how the mode was found, for a person; empty where it was given.
        micro_batch_note: how the micro-batch was found, likewise.
    """

    config: Config
    process: Process
    architecture: Architecture
    folder: Path
    dtype: torch.dtype
    uses_tf32: bool
    stage: int
    local_batch: int
    micro_batches: int
    optimizer_holds_masters: bool
    sums_in_float32: bool
    decode_threads: int
    objective: Objective
    recompute: str
    compile: bool
    norm: NormPlan
    keep_graphs: int | None
    searches_micro_batch: bool
    recompute_note: str = ""
    micro_batch_note: str = ""

    @property
    def micro_batch(self) -> int:
        """Pairs that a rank encodes at a time."""
        return self.local_batch // self.micro_batches

    @property
    def layout(self) -> dict[str, int | str]:
        """What a checkpoint must share with the run that loads it."""
        ours = self.optimizer_holds_masters
        return {
            "ranks": self.process.world_size,
            "ZeRO stage": self.stage,
            "precision": str(self.dtype),
            "loss": self.objective.name,
            "masters": "bf16 weights and what the optimizer keeps" if ours else "float32",
        }

    @property
    def folder_in_store(self) -> str:
        """Where the run's folder is copied to; empty: nowhere."""
        upload = self.config.checkpoint.upload
        return join(upload, self.config.run_name) if upload else ""

    def with_recompute(self, mode: str, note: str = "") -> "RunPlan":
        """The plan with a mode of recomputation, and with what that decides about compilation.

        Args:
            mode: none, selective or full.
            note: how it was found, for a person.

        Raises:
            ConfigError: compiled blocks were asked for, and the mode is selective.
        """
        asked = self.config.model.compile
        compiled = _compiles_blocks(asked, self.process, self.stage, mode, self.norm)
        return replace(self, recompute=mode, compile=compiled, recompute_note=note)

    def with_micro_batch(self, micro_batch: int) -> "RunPlan":
        """The plan of the same run in micro-batches of another size, with all that this decides;
        its mode of recomputation is kept.

        Args:
            micro_batch: pairs that a rank encodes at a time; divides ``local_batch``.

        Raises:
            ConfigError: it does not divide.
        """
        made = decide(replace(self.config, micro_batch=micro_batch), self.process)
        return made.with_recompute(self.recompute, self.recompute_note)

    def recompute_candidates(self) -> list["RunPlan"]:
        """The plans that ``auto`` chooses from, the fastest first; the plan alone without auto."""
        if self.recompute != "auto":
            return [self]
        # Compiled blocks keep no less in selective mode.
        refused = {"selective"} if self.config.model.compile == "blocks" else set()
        return [self.with_recompute(mode) for mode in MODES if mode not in refused]


def decide(config: Config, process: Process) -> RunPlan:
    """Take every decision of a run but the mode of recomputation, which needs its data.

    Args:
        config: the run; its model's name exists.
        process: this rank.

    Raises:
        ConfigError: options that do not go together, or not with the device or the number of ranks.
    """
    try:
        objective = get_objective(config.loss.name)
    except ValueError as error:
        raise ConfigError(f"--loss.name: {error}") from error
    dtype = resolve_precision(config.precision, process.device, process.planned)
    micro_batches = config.micro_batches(process.world_size)
    searches = config.micro_batch == "auto"
    if searches and config.model.bn_batch is not None:
        raise ConfigError(
            "--micro-batch auto with --bn-batch: the groups limit the micro-batch. Pass "
            f"--micro-batch, a multiple of {config.model.bn_batch}"
        )
    stage = _zero_stage(config, dtype, process.world_size, micro_batches)
    keep_graphs = _keep_graphs(config.keep_graphs, stage)
    masters = _optimizer_holds_masters(config.optimizer, dtype, stage)
    architecture = get_config(
        config.model.name,
        scalars=tuple(objective.scalars.items()),
        activation=config.model.activation,
    )
    norm = _norms(config, architecture, process.world_size)
    _check_gather(process, stage, norm)
    return RunPlan(
        config=config,
        process=process,
        architecture=architecture,
        folder=Path(config.logging.dir) / config.run_name,
        dtype=dtype,
        # Of a run in half precision few products are float32, and none of the loss.
        uses_tf32=process.device.type == "cuda" and config.precision != "fp32",
        stage=stage,
        local_batch=config.local_batch(process.world_size),
        micro_batches=micro_batches,
        optimizer_holds_masters=masters,
        sums_in_float32=_sums_in_float32(dtype, stage, micro_batches, masters),
        decode_threads=_decode_threads(config.data.threads, process),
        objective=objective,
        recompute=config.model.recompute,
        compile=_compiles_blocks(
            config.model.compile, process, stage, config.model.recompute, norm
        ),
        norm=norm,
        keep_graphs=keep_graphs,
        searches_micro_batch=searches,
    )


def resolve_precision(
    precision: Precision, device: torch.device, planned: PlannedGpu | None = None
) -> torch.dtype:
    """The dtype of weights and activations.

    Args:
        precision: what was asked for.
        device: where it computes.
        planned: see `Process`.

    Raises:
        ConfigError: the device cannot train in it.
    """
    if device.type == "cpu":
        if precision == "fp16":
            raise ConfigError(
                "--precision fp16 needs a GPU: DeepSpeed has no loss scaling on a CPU. "
                "Pass --precision fp32 or bf16"
            )
        if precision == "tf32":
            raise ConfigError("--precision tf32 needs a GPU. Pass --precision fp32")
        return torch.float32 if precision == "auto" else _DTYPES[precision]
    if precision == "auto":
        return torch.bfloat16 if _has_bf16(planned) else torch.float16
    if precision == "tf32" and _capability(device, planned) < (8, 0):
        raise ConfigError(
            f"--precision tf32: {_name(device, planned)} has no TF32 units. Pass --precision fp32"
        )
    if precision == "bf16" and not _has_bf16(planned):
        raise ConfigError(
            f"--precision bf16: {_name(device, planned)} has no bfloat16 units. "
            "Pass --precision fp16"
        )
    return _DTYPES[precision]


def _has_bf16(planned: PlannedGpu | None) -> bool:
    return planned.capability >= (8, 0) if planned else torch.cuda.is_bf16_supported(False)


def _capability(device: torch.device, planned: PlannedGpu | None) -> tuple[int, int]:
    return planned.capability if planned else torch.cuda.get_device_capability(device)


def _name(device: torch.device, planned: PlannedGpu | None) -> str:
    return planned.name if planned else torch.cuda.get_device_name(device)


def _zero_stage(config: Config, dtype: torch.dtype, world_size: int, micro_batches: int) -> int:
    if config.zero.stage != "auto":
        return config.zero.stage
    if dtype == torch.float32:
        return 0 if world_size == 1 else 1
    # Stage 1 would sum the micro-batches' gradients in bf16 there.
    return 2 if micro_batches > 1 and _optimizer_holds_masters(config.optimizer, dtype, 2) else 1


def _check_gather(process: Process, stage: int, norm: NormPlan) -> None:
    """Refuse a gather behind the image tower on a CPU where the tower sends too.

    Raises:
        ConfigError: at ZeRO stage 3, where ranks share batch statistics, or where the variable says
            something unknown.
    """
    try:
        hides = hides_on_a_cpu()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not hides or process.device.type != "cpu" or process.world_size == 1:
        return
    if stage == 3:
        raise ConfigError(
            f"{VARIABLE}=hidden: at ZeRO stage 3 the image tower gathers parameters, and gloo "
            "bears with one collective at a time. Pass --zero-stage 2, or unset the variable"
        )
    if norm.ranks > 1:
        raise ConfigError(
            f"{VARIABLE}=hidden: with --model.sync-bn, and --bn-batch over ranks, the image tower "
            "sends batch statistics, and gloo bears with one collective at a time. Unset the "
            "variable"
        )


def _optimizer_holds_masters(options: OptimizerConfig, dtype: torch.dtype, stage: int) -> bool:
    """DeepSpeed hands out its bf16 weights at stages 1 to 3, when told to."""
    return dtype == torch.bfloat16 and stage > 0 and not options.has_exact_weights


def _sums_in_float32(dtype: torch.dtype, stage: int, micro_batches: int, masters: bool) -> bool:
    """Not at stage 0, nor at stage 1 where the optimizer holds the masters: DeepSpeed serves
    float32 sums there through ``BF16_Optimizer``, which keeps masters of its own."""
    if micro_batches == 1 or dtype == torch.float32 or stage == 0:
        return False
    return stage > 1 or not masters


def _keep_graphs(asked: int | str, stage: int) -> int | None:
    """Graphs to keep; None: as many as fit.

    Raises:
        ConfigError: a number at ZeRO stage 3.
    """
    if stage == 3:
        if asked not in (0, "auto"):
            raise ConfigError(
                f"--keep-graphs {asked}: ZeRO stage 3 gathers parameters for one forward and its "
                "backward at a time. Pass --keep-graphs 0, or --zero-stage 2"
            )
        return 0
    return None if isinstance(asked, str) else asked


def _norms(config: Config, architecture: Architecture, world_size: int) -> NormPlan:
    if not tower_of(architecture.vision).has_batch_norm:
        return NormPlan()
    local_batch = config.local_batch(world_size)
    micro_batch = local_batch // config.micro_batches(world_size)
    return plan_norms(
        config.model.sync_bn, config.model.bn_batch, world_size, local_batch, micro_batch
    )


def _decode_threads(asked: int, process: Process) -> int:
    if asked:
        return asked
    return _THREADS_BESIDE_A_GPU if process.device.type == "cuda" else cpu_threads(process)


def _runs_triton(process: Process) -> bool:
    # A machine of planned GPUs has Triton, as torch for a GPU does.
    return process.planned.capability >= (8, 0) if process.planned else runs_triton(process.device)


def _compiles_blocks(
    asked: str, process: Process, stage: int, recompute: str, norm: NormPlan
) -> bool:
    """Whether residual blocks are to be compiled.

    Raises:
        ConfigError: asked for at ZeRO stage 3, with selective recomputation, or with shared batch
            statistics.
    """
    if asked == "auto":
        return (
            process.device.type == "cuda"
            and _runs_triton(process)
            and stage < 3
            and recompute != "selective"
            and not norm.is_shared
        )
    wanted = asked == "blocks"
    if wanted and stage == 3:
        raise ConfigError(
            "--model.compile blocks: ZeRO stage 3 gathers parameters in hooks on layers, which "
            "a compiled block would leave out. Pass --model.compile none, or --zero-stage 2"
        )
    if wanted and norm.is_shared:
        raise ConfigError(
            "--model.compile blocks: with --model.sync-bn and --bn-batch a batch norm exchanges or "
            "keeps statistics between blocks, outside any graph. Pass --model.compile none"
        )
    if wanted and recompute == "selective":
        raise ConfigError(
            "--model.compile blocks: a compiled block keeps what its compiler chooses, no less in "
            "selective mode. Pass --model.recompute full, or --model.compile none"
        )
    return wanted

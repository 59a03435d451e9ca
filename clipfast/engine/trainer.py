"""The training loop: data -> step -> metrics, evaluation, checkpoints."""

import math
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.engine.checkpoint import Checkpoints, export_final, move_aside
from clipfast.engine.clock import TrainingClock
from clipfast.engine.config import Config, ConfigError
from clipfast.engine.evaluate import Retrieval, check_evaluation, evaluate, retrieval_table
from clipfast.engine.launch import Process, keep_freed_memory
from clipfast.engine.metrics import Metrics, rate
from clipfast.engine.optimizer import describe, optimizer_holds_masters, zero_stage
from clipfast.engine.pictures import write_figures
from clipfast.engine.recomputation import resolve_checkpoint
from clipfast.engine.setup import (
    build_loader,
    build_model,
    compiles_blocks,
    initialise_engine,
    reapply_options,
)
from clipfast.engine.step import train_step
from clipfast.models import num_parameters
from clipfast.models.config import get_config
from clipfast.optim import warmup_cosine

# What ranks ask of each other at a logging step; the largest request of all of them counts.
_GO_ON, _SAVE, _STOP = 0, 1, 2


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        folder: of the run.
        steps: optimizer steps taken in all.
        finished: False where a signal ended the run early; it can be resumed.
        seconds: of training in this process, evaluation and checkpoints left out.
        images_per_second: over those seconds, all ranks.
        retrieval: the last evaluation, one entry a pattern.
    """

    folder: Path
    steps: int
    finished: bool
    seconds: float
    images_per_second: float
    retrieval: list[Retrieval] = field(default_factory=list)


class Trainer:
    """A run, from its configuration to its final weights.

    Args:
        config: the run.
        process: this rank, its process group started.
        dtype: of weights and activations.
    """

    def __init__(self, config: Config, process: Process, dtype: torch.dtype) -> None:
        self.config = config
        self.process = process
        self.dtype = dtype
        self.folder = Path(config.logging.dir) / config.run_name
        self.stage = zero_stage(config, dtype, process.world_size)
        ours = optimizer_holds_masters(config.optimizer, dtype, self.stage)
        layout = {
            "ranks": process.world_size,
            "ZeRO stage": self.stage,
            "precision": str(dtype),
            "masters": "bf16 weights and what the optimizer keeps" if ours else "float32",
        }
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", config.checkpoint.keep, process, layout
        )
        check_evaluation(config, process)
        # Refuse before minutes of building.
        compiles_blocks(config, process, self.stage, config.model.checkpoint)
        image_size = get_config(config.model.name).vision.image_size
        self.loader = build_loader(config, process, dtype, image_size)
        self.recomputation = resolve_checkpoint(config, process, dtype, self.loader)
        torch.manual_seed(config.seed)
        model = build_model(config, self.recomputation.mode)
        self.parameters = num_parameters(model)
        self.total_steps = config.schedule.max_steps or math.ceil(
            config.schedule.epochs * self.loader.batches_per_epoch
        )
        self.warmup_steps = min(config.schedule.warmup_steps, self.total_steps // 2)
        self.engine = initialise_engine(config, process, dtype, model)
        self.step = 0
        self._signalled = False
        self._saved_at = time.monotonic()
        self._resume()
        if process.device.type == "cpu":
            keep_freed_memory()

    def run(self) -> Result:
        """Train to the end, or to a signal; then evaluate and export."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        metrics = Metrics(
            self.folder, self.config.logging, self.total_steps, self.step, self.process.is_main
        )
        metrics.say(*self._headline())
        first_step, clock = self.step, TrainingClock()
        try:
            finished = self._loop(metrics, clock)
            seconds = clock.seconds
            if finished:
                export_final(self.engine, self.folder / "final.safetensors", self.process)
            retrieval = self._evaluate(metrics) if finished else []
            images = (self.step - first_step) * self.config.batch_size
            result = Result(
                folder=self.folder,
                steps=self.step,
                finished=finished,
                seconds=seconds,
                images_per_second=images / seconds,
                retrieval=retrieval,
            )
            metrics.close()
            metrics.say(*self._summary(result))
            return result
        finally:
            metrics.close()

    def _loop(self, metrics: Metrics, clock: TrainingClock) -> bool:
        """Steps until the end (True) or a signal (False)."""
        config = self.config
        micro_batches = config.micro_batches(self.process.world_size)
        self.engine.train()
        batches = iter(self.loader)
        logged_step, logged_seconds = self.step, clock.seconds
        while self.step < self.total_steps:
            lr = self._set_learning_rate()
            loss, logit_scale = train_step(self.engine, next(batches), micro_batches)
            self.step += 1
            metrics.advance()
            last = self.step == self.total_steps
            request = _GO_ON
            if self._due(config.logging.every_steps) or last:
                values = self._values(loss, logit_scale, lr)
                images = (self.step - logged_step) * config.batch_size
                values["images_per_second"] = images / (clock.seconds - logged_seconds)
                logged_step, logged_seconds = self.step, clock.seconds
                metrics.log(self.step, values)
                self._require_finite(values["loss"])
                request = self._agree()
            with clock.paused():
                if self._due(config.logging.eval_every_steps) and not last:
                    self._evaluate(metrics)
                if request or self._checkpoint_due(last):
                    self._require_finite(loss.item())
                    self._save()
            if request == _STOP and not last:
                metrics.say(
                    f"A signal ended the run after step {self.step}; go on with --resume latest"
                )
                return False
        return True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _checkpoint_due(self, last: bool) -> bool:
        options = self.config.checkpoint
        wanted = options.every_steps > 0 or options.every_minutes > 0
        return self._due(options.every_steps) or (last and wanted)

    def _set_learning_rate(self) -> float:
        lr = warmup_cosine(self.step, self.config.optimizer.lr, self.warmup_steps, self.total_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _values(self, loss: Tensor, logit_scale: Tensor, lr: float) -> dict[str, float]:
        values = {
            "loss": loss.item(),
            "logit_scale": logit_scale.item(),
            "lr": lr,
            "epoch": self.step / self.loader.batches_per_epoch,
        }
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            values["grad_norm"] = float(norm)
        if self.dtype == torch.float16:
            values["loss_scale"] = float(self.engine.optimizer.loss_scale)
            values["skipped_steps"] = self.engine.skipped_steps
        elif skipped := self.engine.skipped_steps or getattr(
            self.engine.optimizer, "skipped_steps", 0
        ):
            values["skipped_steps"] = skipped
        return values

    def _require_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        complete = self.checkpoints.complete()
        raise FloatingPointError(
            f"the loss is {loss} after step {self.step}. Last complete checkpoint: "
            f"{complete[-1] if complete else 'none'}. Go on from it with a lower --optimizer.lr or "
            "with --optimizer.clip-norm 1"
        )

    def _agree(self) -> int:
        """The largest request of any rank: clocks differ, and signals reach ranks one by one."""
        request = _GO_ON
        minutes = (time.monotonic() - self._saved_at) / 60
        if 0 < self.config.checkpoint.every_minutes <= minutes:
            request = _SAVE
        if self._signalled:
            request = _STOP
        shared = torch.tensor(request, device=self.process.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared.item())

    def _on_signal(self, number: int, frame: object) -> None:
        self._signalled = True

    def _evaluate(self, metrics: Metrics) -> list[Retrieval]:
        results = evaluate(self.engine, self.config, self.process, self.dtype)
        for result in results:
            metrics.log(self.step, result.scalars())
            metrics.say(f"step {self.step}: {result.line()}")
        return results

    def _draw(self, retrieval: list[Retrieval]) -> list[Path]:
        folder = self.config.logging.figures
        if not folder or not self.process.is_main:
            return []
        return write_figures(self.folder, retrieval, Path(folder))

    def _save(self) -> None:
        state = {"loader": self.loader.state_dict()}
        self.checkpoints.save(self.engine, self.step, state)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        which = self.config.checkpoint.resume
        if not which:
            if self.process.is_main and (old := move_aside(self.folder)):
                print(f"An earlier run was here: it is now {old} (to go on: --resume latest)")
            dist.barrier()
            return
        state = self.checkpoints.resume(self.engine, which)
        if state is not None:
            reapply_options(self.config, self.engine)
            self.step = state["step"]
            try:
                self.loader.load_state_dict(state["loader"])
            except ValueError as error:
                raise ConfigError(f"--resume {which}: {error}") from error

    def _headline(self) -> list[str]:
        config, process = self.config, self.process
        local_batch = config.local_batch(process.world_size)
        micro_batches = config.micro_batches(process.world_size)
        lines = [
            f"{config.model.name}: {self.parameters / 1e6:.1f}M parameters, {self.dtype}, "
            f"ZeRO {self.stage}, {process.world_size} x {process.device.type}",
            f"batch {config.batch_size} = {process.world_size} ranks x {local_batch}"
            + (f" in {micro_batches} micro-batches" if micro_batches > 1 else ""),
            f"{len(self.loader.order)} pairs in {len(self.loader.shards)} shard(s), "
            f"{self.loader.batches_per_epoch} steps an epoch, {self.total_steps} steps in all, "
            f"{self.warmup_steps} of them warm-up; writing to {self.folder}",
        ]
        lines += describe(config, self.dtype, process.world_size)
        if self.recomputation.line:
            lines.append(self.recomputation.line)
        if self.step:
            lines.append(f"resumed after step {self.step}")
        return lines

    def _summary(self, result: Result) -> list[str]:
        lines = [
            f"{'Finished' if result.finished else 'Stopped'} after {result.steps} steps: "
            f"{result.seconds:.0f} s of training, {rate(result.images_per_second)} images/s"
        ]
        if result.retrieval:
            lines += retrieval_table(result.retrieval, self.config.data.train)
        if result.finished:
            lines.append(f"weights: {result.folder / 'final.safetensors'}")
            lines += [f"picture: {path}" for path in self._draw(result.retrieval)]
        return lines

"""The training loop: data -> step -> metrics, evaluation, checkpoints."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.engine import cpu_products
from clipfast.engine.builders import Builders
from clipfast.engine.checkpoint import Checkpoints, export_final, move_aside
from clipfast.engine.clock import TrainingClock
from clipfast.engine.config import ConfigError
from clipfast.engine.deepspeed.wrap import reapply_options, set_learning_rate, step_figures
from clipfast.engine.evaluate import Evaluations
from clipfast.engine.headline import headline
from clipfast.engine.launch import keep_freed_memory
from clipfast.engine.length import Length
from clipfast.engine.metrics import Metrics, rate
from clipfast.engine.plan import RunPlan
from clipfast.engine.recomputation import resolve_recomputation
from clipfast.engine.requests import Request, Requests
from clipfast.engine.step import train_step
from clipfast.eval import Measured, Retrieval
from clipfast.eval.curves import curves_figure
from clipfast.models import num_parameters
from clipfast.optim import warmup_cosine


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        folder: of the run.
        steps: optimizer steps taken in all.
        finished: False where a signal ended the run early; it can be resumed.
        seconds: of training in this process, evaluation and checkpoints left out.
        images_per_second: over those seconds, all ranks.
        measured: what each evaluation gave at the end, by its name.
        below_floors: a line for each scalar of a finished run that stayed below its floor.
    """

    folder: Path
    steps: int
    finished: bool
    seconds: float
    images_per_second: float
    measured: Mapping[str, Sequence[Measured]] = field(default_factory=dict)
    below_floors: Sequence[str] = ()

    @property
    def retrieval(self) -> list[Retrieval]:
        """Retrieval at the end, one entry per pattern of ``--data.eval``."""
        return [m for m in self.measured.get("retrieval", ()) if isinstance(m, Retrieval)]


class Trainer:
    """A run, from its plan to its final weights.

    Args:
        plan: see ``clipfast.engine.plan.decide``; the process group is started.
        builders: of its parts, where a benchmark or a test brings others.

    Raises:
        ConfigError: data, weights or checkpoint do not fit the run.
    """

    def __init__(self, plan: RunPlan, builders: Builders | None = None) -> None:
        builders = builders or Builders()
        process, options = plan.process, plan.config
        self.checkpoints = Checkpoints(
            plan.folder / "checkpoints", options.checkpoint.keep, process, plan.layout
        )
        # Refuse before minutes of building.
        self._evaluations = Evaluations(plan)
        self.loader = builders.loader(plan)
        self.plan = resolve_recomputation(plan, self.loader)
        self.length = Length.of(options.schedule, self.loader.batches_per_epoch)
        torch.manual_seed(options.seed)
        self._cpu_products = cpu_products.agree(process)
        self.engine = builders.build_engine(self.plan)
        self.step = 0
        self._requests = Requests(process, options.checkpoint.every_minutes)
        self._resume()
        if process.device.type == "cpu":
            keep_freed_memory()

    def run(self) -> Result:
        """Train to the end, or to a signal; then evaluate and export."""
        plan, options = self.plan, self.plan.config
        self._requests.listen()
        metrics = Metrics(
            plan.folder, options.logging, self.length.steps, self.step, plan.process.is_main
        )
        parameters = num_parameters(self.engine.module)
        metrics.say(*headline(plan, self.loader, self.length, parameters, self.step))
        first_step, clock = self.step, TrainingClock()
        try:
            finished = self._loop(metrics, clock)
            seconds = clock.seconds
            if finished:
                final = plan.folder / "final.safetensors"
                export_final(self.engine, final, plan.process, self.step)
            measured = self._evaluate(metrics) if finished else {}
            result = Result(
                folder=plan.folder,
                steps=self.step,
                finished=finished,
                seconds=seconds,
                images_per_second=(self.step - first_step) * options.batch_size / seconds,
                measured=measured,
                below_floors=self._evaluations.below_floors(measured) if finished else (),
            )
            metrics.close()
            metrics.say(*self._summary(result))
            return result
        finally:
            metrics.close()

    def _loop(self, metrics: Metrics, clock: TrainingClock) -> bool:
        """Steps until the end (True) or a signal (False)."""
        plan, options = self.plan, self.plan.config
        self.engine.train()
        batches = iter(self.loader)
        logged_step, logged_seconds = self.step, clock.seconds
        while self.step < self.length.steps:
            lr = warmup_cosine(
                self.step, options.optimizer.lr, self.length.warmup, self.length.steps
            )
            set_learning_rate(self.engine, lr)
            loss, logit_scale = train_step(
                self.engine, next(batches), plan.micro_batches, plan.objective
            )
            self.step += 1
            metrics.advance()
            last = self.step == self.length.steps
            request = Request.GO_ON
            if self._due(options.logging.every_steps) or last:
                values = self._values(loss, logit_scale, lr)
                images = (self.step - logged_step) * options.batch_size
                values["images_per_second"] = images / (clock.seconds - logged_seconds)
                logged_step, logged_seconds = self.step, clock.seconds
                metrics.log(self.step, values)
                self._require_finite(values["loss"])
                request = self._requests.agree()
            with clock.paused():
                if self._due(options.logging.eval_every_steps) and not last:
                    self._evaluate(metrics)
                if request or self._checkpoint_due(last):
                    self._require_finite(loss.item())
                    self._save()
            if request == Request.STOP and not last:
                metrics.say(
                    f"A signal ended the run after step {self.step}; go on with --resume latest"
                )
                return False
        return True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _checkpoint_due(self, last: bool) -> bool:
        options = self.plan.config.checkpoint
        wanted = options.every_steps > 0 or options.every_minutes > 0
        return self._due(options.every_steps) or (last and wanted)

    def _values(self, loss: Tensor, logit_scale: Tensor, lr: float) -> dict[str, float]:
        return {
            "loss": loss.item(),
            "logit_scale": logit_scale.item(),
            "lr": lr,
            "epoch": self.step / self.loader.batches_per_epoch,
            **step_figures(self.engine, self.plan.dtype),
        }

    def _require_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        complete = self.checkpoints.complete()
        raise FloatingPointError(
            f"the loss is {loss} after step {self.step}. Last complete checkpoint: "
            f"{complete[-1] if complete else 'none'}. Go on from it with a lower --optimizer.lr or "
            "with --optimizer.clip-norm 1"
        )

    def _evaluate(self, metrics: Metrics) -> dict[str, Sequence[Measured]]:
        def note(entry: Measured) -> None:
            metrics.log(self.step, entry.scalars)
            metrics.say(*(f"step {self.step}: {line}" for line in entry.lines))

        return self._evaluations.run(self.engine, note)

    def _draw(self, measured: Mapping[str, Sequence[Measured]]) -> list[Path]:
        name = self.plan.config.logging.figures
        if not name or not self.plan.process.is_main:
            return []
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        paths = self._evaluations.draw(measured, folder)
        lines = (self.plan.folder / "metrics.jsonl").read_text().splitlines()
        curves_figure([json.loads(line) for line in lines], folder / "curves.png")
        return [*paths, folder / "curves.png"]

    def _save(self) -> None:
        state = {"loader": self.loader.state_dict(), "cpu_products": self._cpu_products}
        self.checkpoints.save(self.engine, self.step, state)
        self._requests.saved()

    def _resume(self) -> None:
        which = self.plan.config.checkpoint.resume
        if not which:
            if self.plan.process.is_main and (old := move_aside(self.plan.folder)):
                print(f"An earlier run was here: it is now {old} (to go on: --resume latest)")
            dist.barrier()
            return
        state = self.checkpoints.resume(self.engine, which)
        if state is not None:
            reapply_options(self.plan.config.optimizer, self.engine)
            self.step = state["step"]
            self._cpu_products, note = cpu_products.go_on_with(
                state.get("cpu_products", {}), self._cpu_products
            )
            if note and self.plan.process.is_main:
                print(note)
            try:
                self.loader.load_state_dict(state["loader"])
            except ValueError as error:
                raise ConfigError(f"--resume {which}: {error}") from error

    def _summary(self, result: Result) -> list[str]:
        lines = [
            f"{'Finished' if result.finished else 'Stopped'} after {result.steps} steps: "
            f"{result.seconds:.0f} s of training, {rate(result.images_per_second)} images/s"
        ]
        lines += self._evaluations.summary(result.measured)
        lines += result.below_floors
        if result.finished:
            lines.append(f"weights: {result.folder / 'final.safetensors'}")
            lines += [f"picture: {path}" for path in self._draw(result.measured)]
        return lines

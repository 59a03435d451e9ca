"""The training loop: data -> step -> metrics, evaluation, checkpoints."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clipfast.checkpoint import find
from clipfast.engine import cpu_products
from clipfast.engine.agreement import from_main
from clipfast.engine.builders import Builders
from clipfast.engine.checkpoint import LATEST, Checkpoints, Chosen
from clipfast.engine.clock import TrainingClock
from clipfast.engine.config import ConfigError
from clipfast.engine.deepspeed.wrap import reapply_options, set_learning_rate, step_figures
from clipfast.engine.differences import (
    WITH_CHANGES,
    Difference,
    differences,
    plain,
    refuse_changes,
)
from clipfast.engine.evaluate import Evaluations
from clipfast.engine.export import export_final
from clipfast.engine.headline import headline
from clipfast.engine.launch import keep_freed_memory
from clipfast.engine.length import Length
from clipfast.engine.metrics import Metrics, rate
from clipfast.engine.plan import RunPlan
from clipfast.engine.recomputation import resolve_recomputation
from clipfast.engine.requests import RETRY_SECONDS, Request, Requests
from clipfast.engine.runfolder import RunFolder
from clipfast.engine.startlog import tell
from clipfast.engine.state_bytes import saved_bytes
from clipfast.engine.step import train_step
from clipfast.env import stamp
from clipfast.eval import Measured, Retrieval
from clipfast.eval.curves import curves_figure
from clipfast.files import explain, free_bytes
from clipfast.models import num_parameters
from clipfast.optim import warmup_cosine

# At the end of a run nobody comes back to what could not be written.
_ATTEMPTS = 11


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
        lost: a line for each thing that the run could not write.
    """

    folder: Path
    steps: int
    finished: bool
    seconds: float
    images_per_second: float
    measured: Mapping[str, Sequence[Measured]] = field(default_factory=dict)
    below_floors: Sequence[str] = ()
    lost: Sequence[str] = ()

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
        options = plan.config
        self._process = plan.process
        # Refuse before minutes of building.
        self._evaluations = Evaluations(plan)
        self.folder = RunFolder(plan.folder, sync=options.checkpoint.fsync)
        self.step = 0
        try:
            self._open(plan)
            self._build(plan, builders or Builders())
        except BaseException:
            self.folder.close()
            raise

    def run(self) -> Result:
        """Train to the end, or to a signal; then evaluate and export."""
        plan, options = self.plan, self.plan.config
        status = "failed"
        self._requests.listen()
        metrics = self._make_metrics()
        parameters = num_parameters(self.engine.module)
        metrics.say(*headline(plan, self.loader, self.length, parameters, self.step))
        first_step, clock = self.step, TrainingClock()
        try:
            finished = self._loop(metrics, clock)
            seconds = clock.seconds
            lost = self._export(metrics) if finished else []
            status = "failed" if lost else "interrupted"
            if finished and self._requests.end_at_once() == Request.STOP:
                metrics.say("Interrupted before the evaluation: --resume latest measures")
                finished = False
            measured = self._evaluate(metrics) if finished else {}
            result = Result(
                folder=plan.folder,
                steps=self.step,
                finished=finished,
                seconds=seconds,
                images_per_second=(self.step - first_step) * options.batch_size / seconds,
                measured=measured,
                below_floors=self._evaluations.below_floors(measured) if finished else (),
                lost=lost,
            )
            status = "interrupted" if not finished else "failed" if lost else "finished"
            metrics.close()
            metrics.say(*self._summary(result))
            return result
        except SystemExit:
            metrics.say("Interrupted in the evaluation: the weights are written")
            raise
        finally:
            metrics.close()
            if plan.process.is_main:
                self.folder.end(status, self.step)
            self.folder.close()

    def _open(self, plan: RunPlan) -> None:
        """Take the run's folder, and choose what to go on from."""
        process, options = plan.process, plan.config.checkpoint
        folder, which = plan.folder / "checkpoints", options.resume
        # Another run's checkpoint begins a run of its own.
        self._goes_on = which == LATEST or (
            bool(which) and Path(which or "").resolve().parent == folder.resolve()
        )

        def open_folder() -> str:
            newest = find(folder)[-1:] if self._goes_on else []
            known = next((f.manifest.run for f in newest if f.manifest), "")
            tell(*self.folder.open(resumes=self._goes_on, known=known))
            return self.folder.run_id

        self.run_id = from_main(process, open_folder)
        self.checkpoints = Checkpoints(
            folder, options.keep, process, plan.layout, run=self.run_id, sync=options.fsync
        )
        self._chosen: Chosen | None = None
        self._differences: list[Difference] = []
        if not which:
            return
        if self._goes_on:
            self.checkpoints.tidy()
        self._chosen = self.checkpoints.choose(which)
        if self._chosen is None:
            return
        self._tell(*self._chosen.notes)
        saved = self._chosen.manifest.state.get("config", {})
        self._differences = differences(saved, plan.config)
        refuse_changes(self._differences, allowed=options.resume_with_changes)
        if self._differences:
            self._tell("Differs from the run that was saved:")
            self._tell(*(f"  {difference}" for difference in self._differences))

    def _build(self, plan: RunPlan, builders: Builders) -> None:
        """Everything that trains, and where it stands."""
        process, options = plan.process, plan.config
        self.loader = builders.loader(plan)
        self.plan = resolve_recomputation(plan, self.loader)
        self.length = Length.of(options.schedule, self.loader.batches_per_epoch)
        torch.manual_seed(options.seed)
        self._cpu_products = cpu_products.agree(process)
        self._requests = Requests(process, options.checkpoint.every_minutes)
        if self._chosen is not None:
            self._place_loader(self._chosen)
        self.engine = builders.build_engine(self.plan)
        if self._chosen is not None:
            self._load(self._chosen)
        self._tell(*from_main(process, self._begin))
        self._look_for_room()
        if process.device.type == "cpu":
            keep_freed_memory()

    def _place_loader(self, chosen: Chosen) -> None:
        try:
            self.loader.load_state_dict(chosen.manifest.state["loader"])
        except ValueError as error:
            if not self.plan.config.checkpoint.resume_with_changes:
                raise ConfigError(f"--resume: {error}, or pass {WITH_CHANGES}") from error
            self._tell(f"{error}: data are read from their beginning")

    def _load(self, chosen: Chosen) -> None:
        self.checkpoints.load(self.engine, chosen)
        reapply_options(self.plan.config.optimizer, self.engine)
        self.step = chosen.manifest.step
        self._cpu_products, note = cpu_products.go_on_with(
            chosen.manifest.state.get("cpu_products", {}), self._cpu_products
        )
        self._tell(*[note] if note else [])

    def _look_for_room(self) -> None:
        """Say at once what a disk would say after the first thousand steps."""
        plan, options = self.plan, self.plan.config.checkpoint
        # A model that stage 3 has cut up no longer tells its size.
        if not plan.process.is_main or plan.stage == 3 or not self._saves:
            return
        each = saved_bytes(plan, self.engine.module)
        # One more than is kept stands while it is written.
        wanted = each * (options.keep + 1)
        free = free_bytes(plan.folder)
        if free is not None and free < wanted:
            tell(
                f"Checkpoints will take {wanted / 1e9:.1f} GB ({options.keep} kept and one more of "
                f"{each / 1e9:.2f} GB each), and {free / 1e9:.1f} GB are free at {plan.folder}"
            )

    def _begin(self) -> list[str]:
        """Write down this start, on rank 0."""
        chosen = self._chosen
        start = {
            "ranks": self.plan.process.world_size,
            "config": plain(self.plan.config),
            "environment": stamp(),
            "resumed": chosen and {"checkpoint": str(chosen.path), "step": self.step},
            "differs": [str(difference) for difference in self._differences],
        }
        return self.folder.begin(start, resumed=self._goes_on)

    def _make_metrics(self) -> Metrics:
        plan, options = self.plan, self.plan.config

        def make() -> Metrics:
            return Metrics(
                plan.folder,
                options.logging,
                self.length.steps,
                self.step,
                plan.process.is_main,
                run=self.run_id,
                sync=options.checkpoint.fsync,
            )

        made: list[Metrics] = []
        try:
            # What rank 0 cannot write ends every rank.
            from_main(plan.process, lambda: made.append(make()))
        except OSError as error:
            raise ConfigError(f"cannot write metrics: {explain(error, plan.folder)}") from error
        metrics = made[0] if made else make()
        metrics.describe("run/config", json.dumps(plain(options), indent=1))
        metrics.describe("run/command", " ".join(sys.argv))
        return metrics

    def _tell(self, *lines: str) -> None:
        if self._process.is_main:
            tell(*lines)

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
            if self._due(options.logging.every_steps) or last:
                values = self._values(loss, logit_scale, lr)
                images = (self.step - logged_step) * options.batch_size
                values["images_per_second"] = images / (clock.seconds - logged_seconds)
                logged_step, logged_seconds = self.step, clock.seconds
                metrics.log(self.step, values)
                self._require_finite(values["loss"])
            request = self._requests.agree()
            stops = request == Request.STOP and not last
            with clock.paused():
                if self._due(options.logging.eval_every_steps) and not last and not stops:
                    self._evaluate(metrics)
                if request or self._checkpoint_due(last):
                    self._require_finite(loss.item())
                    self._save(metrics, stops=stops, last=last)
            if stops:
                return False
        return True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _checkpoint_due(self, last: bool) -> bool:
        every = self.plan.config.checkpoint.every_steps
        return self._due(every) or (last and self._saves)

    @property
    def _saves(self) -> bool:
        """Checkpoints are wanted at all."""
        options = self.plan.config.checkpoint
        return options.every_steps > 0 or options.every_minutes > 0

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
        raise FloatingPointError(
            f"the loss is {loss} after step {self.step}. Last complete checkpoint: "
            f"{self.checkpoints.latest() or 'none'}. Go on from it with a lower --optimizer.lr or "
            f"with --optimizer.clip-norm 1, and {WITH_CHANGES}"
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

    def _save(self, metrics: Metrics, *, stops: bool, last: bool) -> None:
        """Save a checkpoint; one that fails costs the attempt, not the run."""
        state = {
            "loader": self.loader.state_dict(),
            "cpu_products": self._cpu_products,
            "config": plain(self.plan.config),
        }

        def save() -> None:
            from_main(self.plan.process, self.folder.require)
            self.checkpoints.save(self.engine, self.step, state)

        # A run that ends here has no later attempt of its own accord.
        failed = self._attempt(save, metrics, f"NOT SAVED after step {self.step}", insists=last)
        if failed and stops:
            failed = self._attempt(save, metrics, f"NOT SAVED after step {self.step}")
        if failed:
            self._requests.failed()
        else:
            self._requests.saved()
        if stops:
            by = self._requests.signal_name or "a signal"
            saved = self.checkpoints.latest()
            metrics.say(
                f"Interrupted by {by} after step {self.step}. Go on from {saved or 'the start'} "
                "with the same command and --resume latest"
            )

    def _export(self, metrics: Metrics) -> list[str]:
        """Write the final weights.

        Returns:
            A line where that was not possible.
        """
        path = self.plan.folder / "final.safetensors"

        def export() -> None:
            from_main(self.plan.process, self.folder.require)
            export_final(self.engine, path, self.plan.process, self.step)

        failed = self._attempt(export, metrics, "The final weights are NOT WRITTEN", insists=True)
        return [f"{failed}. Make room, then --resume latest writes them"] if failed else []

    def _attempt(
        self, act: Callable[[], None], metrics: Metrics, words: str, *, insists: bool = False
    ) -> str:
        """Try to write something, on every rank; say what fails.

        Args:
            act: a collective that raises OSError on every rank or on none.
            metrics: to say it with.
            words: what it means.
            insists: try again and again for ten minutes, or until a signal.

        Returns:
            What was said last; empty where it was written.
        """
        for attempts_left in reversed(range(_ATTEMPTS if insists else 1)):
            try:
                act()
                return ""
            except OSError as error:
                line = f"{words}: {error}"
            metrics.say(line + ("; trying again in a minute" if attempts_left else ""))
            if attempts_left and self._requests.wait(RETRY_SECONDS) == Request.STOP:
                break
        return line

    def _summary(self, result: Result) -> list[str]:
        lines = [
            f"{'Finished' if result.finished else 'Stopped'} after {result.steps} steps: "
            f"{result.seconds:.0f} s of training, {rate(result.images_per_second)} images/s"
        ]
        lines += self._evaluations.summary(result.measured)
        lines += result.below_floors
        if result.finished and not result.lost:
            lines.append(f"weights: {result.folder / 'final.safetensors'}")
            lines += [f"picture: {path}" for path in self._draw(result.measured)]
        return lines

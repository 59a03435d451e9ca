"""The training loop: data -> step -> metrics, evaluation, checkpoints."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from clipfast.data import TrainLoader
from clipfast.engine import cpu_products, progress
from clipfast.engine.agreement import from_main, require_same, require_same_weights
from clipfast.engine.attempts import attempt
from clipfast.engine.builders import Builders
from clipfast.engine.checkpoint import Chosen
from clipfast.engine.clock import TrainingClock
from clipfast.engine.config import ConfigError
from clipfast.engine.deepspeed.wrap import set_learning_rate
from clipfast.engine.differences import (
    WITH_CHANGES,
    plain,
)
from clipfast.engine.evaluate import Evaluations
from clipfast.engine.export import export_final
from clipfast.engine.headline import headline
from clipfast.engine.launch import keep_freed_memory
from clipfast.engine.leaving import draw_pictures, write_results
from clipfast.engine.length import Length
from clipfast.engine.metrics import Metrics, rate
from clipfast.engine.micro_batch import resolve_memory
from clipfast.engine.observing.observer import Observer
from clipfast.engine.opening import Opening
from clipfast.engine.plan import RunPlan
from clipfast.engine.requests import Request, Requests, StopAsked
from clipfast.engine.saves import Saves
from clipfast.engine.skips import Skips
from clipfast.engine.startlog import tell
from clipfast.engine.uploads import Uploads
from clipfast.engine.validation import Validation
from clipfast.eval import Measured, Retrieval
from clipfast.files import explain
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
        lost: a line for each thing that the run could not write, or wrote and is of no use.
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
        # Refuse before minutes of building.
        self._evaluations = Evaluations(plan)
        self._validation = Validation(plan)
        self._opening = Opening(plan)
        self.step = 0
        self._began = time.monotonic()
        self._evaluated, self._evaluated_seconds = 0, 0.0
        try:
            self._build(plan, builders or Builders())
        except BaseException:
            self._opening.close()
            raise

    def run(self) -> Result:
        """Train to the end, or to a signal; then evaluate and export."""
        plan, options = self.plan, self.plan.config
        status = "failed"
        self._requests.listen()
        first_step, clock = self.step, TrainingClock()
        metrics = None
        try:
            metrics = self._make_metrics()
            parameters = num_parameters(self.engine.module)
            metrics.say(*headline(plan, self.loader, self.length, parameters, self.step))
            finished = self._loop(metrics, clock)
            seconds = clock.seconds
            progress.mark("export")
            lost = self._export(metrics) if finished else []
            if finished and not lost:
                self._uploads.send_final(plan.folder / "final.safetensors")
            status = "failed" if lost else "interrupted"
            if finished and self._requests.end_at_once() == Request.STOP:
                metrics.say("Interrupted before the evaluation: --resume latest measures")
                finished = False
            progress.mark("evaluation")
            if finished:
                self._validate(metrics)
            measured = self._evaluate(metrics) if finished else {}
            progress.mark("end")
            pictures, results = [], []
            if finished:
                pictures = draw_pictures(plan, self._evaluations, measured, metrics, self.step)
                results = write_results(plan, self._evaluations, measured, metrics)
            lost += self._uploads.finish(metrics, leaves=not finished)
            lost += metrics.close()
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
            metrics.say(*self._summary(result, pictures, results))
            return result
        except SystemExit:
            if metrics is not None:
                metrics.say("Interrupted in the evaluation, with all else done")
            raise
        except Exception:
            status = "failed"
            raise
        finally:
            if metrics is not None:
                metrics.close()
            leave = partial(self._uploads.leave, print, quick=status == "failed")
            self._opening.close(status, self.step, leave)

    def _build(self, plan: RunPlan, builders: Builders) -> None:
        """Everything that trains, and where it stands."""
        process, options = plan.process, plan.config
        chosen = self._opening.chosen
        remembered = chosen.manifest.state.get("micro_batch") if chosen is not None else None
        self.loader = builders.loader(plan)
        self.plan = resolve_memory(plan, self.loader, remembered)
        if self.plan.micro_batches != plan.micro_batches:
            # Built anew, it would look at the shards again.
            if isinstance(self.loader, TrainLoader):
                self.loader.decode_by(self.plan.micro_batch)
            else:
                self.loader = builders.loader(self.plan)
        self.length = Length.of(options.schedule, self.loader.batches_per_epoch)
        torch.manual_seed(options.seed)
        self._cpu_products = cpu_products.agree(process)
        self._requests = Requests(process, options.checkpoint.every_minutes)
        self._uploads = Uploads(plan, self._opening)
        self._saves = Saves(self._opening, self._requests, options.checkpoint, self._uploads.begin)
        if chosen is not None:
            self._place_loader(chosen)
        data = self.loader.state_dict()
        require_same(process, {f"data: {name}": str(value) for name, value in data.items()})
        self._skips = Skips(plan, self.loader)
        self.engine = builders.build_engine(self.plan)
        if chosen is not None:
            self._load(chosen)
        self._opening.begin(self.step)
        self._opening.look_for_room(self.engine.module, self.step, self.length.steps)
        self._uploads.catch_up(chosen)
        if process.device.type == "cpu":
            keep_freed_memory()

    def _place_loader(self, chosen: Chosen) -> None:
        try:
            self.loader.load_state_dict(chosen.manifest.state["loader"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"--resume {chosen.path}: no place in the data is in it") from error
        except ValueError as error:
            if not self.plan.config.checkpoint.resume_with_changes:
                raise ConfigError(f"--resume: {error}, or pass {WITH_CHANGES}") from error
            self._tell(f"{error}: data are read from their beginning")

    def _load(self, chosen: Chosen) -> None:
        self._tell(*self._opening.checkpoints.load(self.engine, chosen))
        self.step = chosen.manifest.step
        self._cpu_products, note = cpu_products.go_on_with(
            chosen.manifest.state.get("cpu_products", {}), self._cpu_products
        )
        self._tell(*[note] if note else [])

    def _make_metrics(self) -> Metrics:
        plan, options = self.plan, self.plan.config

        def make() -> Metrics:
            return Metrics(
                plan.folder,
                options.logging,
                self.length.steps,
                self.step,
                plan.process.is_main,
                run=self._opening.run_id,
                sync=options.checkpoint.fsync,
            )

        made: list[Metrics] = []
        try:
            # What rank 0 cannot write ends every rank.
            from_main(plan.process, lambda: made.append(make()))
        except OSError as error:
            raise ConfigError(f"cannot write metrics: {explain(error, plan.folder)}") from error
        metrics = made[0] if made else make()
        metrics.describe(plain(options), " ".join(sys.argv))
        return metrics

    def _tell(self, *lines: str) -> None:
        if self.plan.process.is_main:
            tell(*lines)

    def _loop(self, metrics: Metrics, clock: TrainingClock) -> bool:
        """Steps until the end (True) or a signal (False)."""
        plan, options = self.plan, self.plan.config
        self.engine.train()
        observer = Observer(plan, self.engine, metrics.say, self.step, self.length.steps)
        batches = iter(self.loader)
        logged_step, logged_seconds = self.step, clock.seconds
        while self.step < self.length.steps:
            lr = warmup_cosine(
                self.step, options.optimizer.lr, self.length.warmup, self.length.steps
            )
            set_learning_rate(self.engine, lr)
            last = self.step + 1 == self.length.steps
            is_logged = last or (self.step + 1) % options.logging.every_steps == 0
            progress.mark("data")
            loss, logit_scale = observer.step(batches, is_logged=is_logged)
            self.step += 1
            progress.mark("metrics", self.step)
            metrics.advance()
            if is_logged:
                values = self._values(loss, logit_scale, lr)
                taken, seconds = self.step - logged_step, clock.seconds - logged_seconds
                values |= observer.figures(self.step, taken, seconds)
                for name, samples in self.loader.source_samples().items():
                    values[f"data/samples/{name}"] = float(samples)
                logged_step, logged_seconds = self.step, clock.seconds
                self._skips.share(metrics.say)
                if self._skips.wanted:
                    values["skipped_samples"] = len(self._skips)
                metrics.log(self.step, values)
                self._require_finite(values["loss"], metrics)
            progress.mark("agreement")
            request = self._requests.agree(self._saves.progress, self._uploads.progress)
            stops = request == Request.STOP and not last
            with clock.paused():
                self._saves.go_on(metrics.say)
                self._uploads.go_on(self._requests.least_sent, metrics, self.step)
                measures = self._measures_due() if not last and not stops else []
                if measures:
                    # Nobody puts it in place meanwhile.
                    self._saves.finish(metrics.say)
                    progress.mark("evaluation")
                    try:
                        for measure in measures:
                            measure(metrics, self._requests.leave_if_stopped)
                    except StopAsked:
                        request, stops = Request.STOP, True
                if request or self._saves.are_due(self.step, last=last):
                    self._require_finite(loss.item(), metrics)
                    with metrics.timed(self.step, "seconds/checkpoint"):
                        self._save(metrics, stops=stops, last=last)
            if stops:
                observer.close()
                return False
        return True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _measures_due(self) -> list[Callable[[Metrics, Callable[[], None]], object]]:
        options = self.plan.config.logging
        asked = (
            (self._validate, options.validation_every),
            (self._evaluate, self.plan.config.evaluate_every),
        )
        return [measure for measure, every in asked if self._due(every)]

    def _values(self, loss: Tensor, logit_scale: Tensor, lr: float) -> dict[str, float]:
        return {
            "loss": loss.item(),
            "logit_scale": logit_scale.item(),
            "lr": lr,
            "epoch": self.step / self.loader.batches_per_epoch,
        }

    def _require_finite(self, loss: float, metrics: Metrics) -> None:
        if math.isfinite(loss):
            return
        # All ranks have the same loss, and what is being saved was finite.
        self._saves.finish(metrics.say)
        latest = self._opening.checkpoints.latest()
        raise FloatingPointError(
            f"the loss is {loss} after step {self.step}. Last complete checkpoint: "
            f"{latest or 'none'}. Go on from it with a lower --optimizer.lr or with "
            f"--optimizer.clip-norm 1, and {WITH_CHANGES}"
        )

    def _validate(self, metrics: Metrics, between: Callable[[], None] = progress.again) -> None:
        found = self._validation.run(self.engine, between)
        if found:
            metrics.log(self.step, found)
            metrics.say(
                f"step {self.step}: validation loss {found['validation/loss']:.4f}, "
                f"{self._validation.batches} x {self._validation.batch} held-out pairs"
            )

    def _evaluate(
        self, metrics: Metrics, between: Callable[[], None] = progress.again
    ) -> dict[str, Sequence[Measured]]:
        def note(entry: Measured) -> None:
            metrics.log(self.step, entry.scalars)
            metrics.say(*(f"step {self.step}: {line}" for line in entry.lines))

        began = time.monotonic()
        measured = self._evaluations.run(self.engine, note, between)
        seconds = time.monotonic() - began
        self._evaluated_seconds += seconds
        self._evaluated += 1
        share = self._evaluated_seconds / (time.monotonic() - self._began)
        metrics.log(self.step, {"seconds/evaluation": seconds, "evaluation/share": share})
        return measured

    def _save(self, metrics: Metrics, *, stops: bool, last: bool) -> None:
        """Save a checkpoint, with all that a run needs beside the engine's state."""
        # What any rank has met belongs to the loader's state, which is rank 0's.
        plan = self.plan
        self._skips.share(metrics.say)
        state = {
            "loader": self.loader.state_dict(),
            "cpu_products": self._cpu_products,
            "config": plain(self.plan.config),
            "micro_batch": plan.micro_batch,
        }

        if plan.stage < 3:
            require_same_weights(plan.process, self.engine.module, self.step)
        self._saves.save(self.engine, self.step, state, metrics.say, stops=stops, last=last)

    def _export(self, metrics: Metrics) -> list[str]:
        """Write the final weights.

        Returns:
            A line where that was not possible, or where they are of no use.
        """
        path = self.plan.folder / "final.safetensors"
        odd = ""

        def export() -> None:
            nonlocal odd
            self._opening.require()
            odd = export_final(self.engine, path, self.plan.process, self.step)

        words = "The final weights are NOT WRITTEN"
        failed = attempt(export, words, metrics.say, self._requests)
        if failed:
            return [f"{failed}. Make room, then --resume latest writes them"]
        if odd:
            line = (
                f"The final weights are NOT FINITE: {odd}. {path} holds them, and load_weights "
                f"refuses it. The run diverged: go on from a checkpoint before that with a lower "
                f"--optimizer.lr or with --optimizer.clip-norm 1, and {WITH_CHANGES}"
            )
            metrics.say(line)
            return [line]
        return []

    def _summary(
        self, result: Result, pictures: Sequence[Path], results: Sequence[Path]
    ) -> list[str]:
        lines = [
            f"{'Finished' if result.finished else 'Stopped'} after {result.steps} steps: "
            f"{result.seconds:.0f} s of training, {rate(result.images_per_second)} images/s"
        ]
        lines += self._skips.lines()
        if any(result.measured.values()):
            spent, whole = self._evaluated_seconds, time.monotonic() - self._began
            times = "once" if self._evaluated == 1 else f"{self._evaluated} times"
            lines.append(f"evaluated {times}: {spent:.1f} s, {spent / whole:.1%} of {whole:.0f} s")
        lines += self._evaluations.summary(result.measured)
        lines += result.below_floors
        if result.finished and not result.lost:
            lines.append(f"weights: {result.folder / 'final.safetensors'}")
        lines += self._uploads.summary()
        lines += [f"result: {path}" for path in results]
        lines += [f"picture: {path}" for path in pictures]
        return lines

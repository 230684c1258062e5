"""The loop shared by everything that trains: step, log, evaluate, checkpoint, stop, resume."""

import dataclasses
import errno
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clipx.errors import ClipxError
from clipx.run import Interrupted, Run
from clipx.training.checkpoints import Checkpoints
from clipx.training.distributed import world
from clipx.training.optimizer import check_schedule, schedule_factor, set_learning_rate
from clipx.training.progress import TrainingProgress
from clipx.training.stopping import StopSignal


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How long and how to train; the keys of ``training`` in a configuration.

    Args:
        steps: optimizer steps.
        batch_size: pairs a process and micro-batch.
        accumulate: micro-batches an optimizer step; each is a contrastive batch of its own.
        schedule: cosine, constant or cooldown, after ``warmup`` steps of linear warm-up.
        warmup: steps.
        cooldown: steps of the cooldown schedule.
        clip_grad_norm: largest norm of the gradient, None for no clipping.
        precision: fp32, bf16 or fp16 of the towers; losses are always float32.
        ema: decay of an exponential moving average of the weights, in (0, 1), which is then what is evaluated and
            saved; None for none.
        compile: torch.compile the module.
        log_every: steps between records of metrics.jsonl.
        evaluate_every: steps between evaluations, None for only at the end.
        checkpoint_every: steps between checkpoints, None for only at the end.
        keep: newest checkpoints to keep, besides the best.
        max_bad: share of the samples seen that may be unusable before the run stops, in [0, 1].
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    schedule: str = "cosine"
    warmup: int = 0
    cooldown: int = 0
    clip_grad_norm: float | None = None
    precision: str = "fp32"
    ema: float | None = None
    compile: bool = False
    log_every: int = 10
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    max_bad: float = 0.1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ClipxError(f"training.{name}={getattr(self, name)} must be at least 1")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ClipxError(f"training.{name}={getattr(self, name)} must be at least 1, or null for never")
        if self.precision not in {"fp32", "bf16", "fp16"}:
            raise ClipxError(f"there is no precision {self.precision!r}", hint="valid: fp32, bf16, fp16")
        if self.precision == "fp16" and not torch.cuda.is_available():
            raise ClipxError("training in fp16 needs a GPU", hint="training.precision=bf16 works on a CPU too")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ClipxError(f"training.ema={self.ema} must lie between 0 and 1")
        if not 0 <= self.max_bad <= 1:
            raise ClipxError(f"training.max_bad={self.max_bad} must lie in [0, 1]")
        check_schedule(self.schedule, self.warmup, self.cooldown, self.steps)

    def accelerator(self, **arguments: Any) -> Accelerator:
        """The Accelerator of these settings."""
        precision = "no" if self.precision == "fp32" else self.precision
        return Accelerator(
            mixed_precision=precision, gradient_accumulation_steps=self.accumulate, step_scheduler_with_optimizer=False,
            **arguments,
        )


@dataclasses.dataclass
class Fitted:
    """What a training loop leaves behind.

    Attributes:
        steps: optimizer steps done.
        images_per_second: over the steps of this process start, data waiting included, evaluation excluded.
        data_wait: share of the training time spent waiting for data, in [0, 1].
        seconds: of training in this process start, evaluation and checkpoints excluded.
        bad: id -> reason of every sample passed over.
        evaluation: the last evaluation.
    """

    steps: int = 0
    images_per_second: float = 0.0
    data_wait: float = 0.0
    seconds: float = 0.0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)


class Trainer:
    """Trains a module in a run's directory.

    Args:
        module: ``forward(batch) -> {"loss": scalar, ...}`` with a ``clip`` inside.
        optimizer: over the module's parameters; its learning rates are the bases of the schedule.
        settings: the loop's.
        run: where metrics and checkpoints go, and whether this is a resume.
        seed: of every random draw: dropout in step k of process r is a function of (seed, k, r), so it needs no state.
        accelerator: None builds one from the settings.
        evaluate: called with the CLIP to measure; returns metrics.
        best: the metric of ``evaluate`` that decides which checkpoint is the best.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        settings: LoopSettings,
        run: Run,
        *,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        best: str = "top1",
    ) -> None:
        self.settings = settings
        self.run = run
        self.seed = seed
        self.accelerator = accelerator or settings.accelerator()
        # Convolutions run faster in channels-last on CPU and GPU alike; other layers do not notice.
        self.module = module.to(self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = optimizer
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.evaluate = evaluate
        self.best = best
        self.average: AveragedModel | None = None
        if settings.ema is not None:
            average_fn = get_ema_multi_avg_fn(settings.ema)
            self.average = AveragedModel(module.clip, multi_avg_fn=average_fn, use_buffers=True)  # type: ignore[arg-type]
        self.fitted = Fitted()
        self.positions: dict[int, tuple[int, int]] = {}
        self.start = 0
        self._images = 0
        self._waited = self._trained = 0.0
        self._prepare()

    def _prepare(self) -> None:
        if self.run.directory is not None:
            self.checkpoints: Checkpoints | None = Checkpoints(self.run.directory / "checkpoints", self.settings.keep)
        else:
            self.checkpoints = None
        compiled = torch.compile(self.module) if self.settings.compile else self.module
        self.wrapped, self.optimizer = self.accelerator.prepare(compiled, self.optimizer)
        if self.run.resumed:
            self._restore()

    @property
    def clip(self) -> nn.Module:
        """The CLIP to evaluate and save: the average where there is one."""
        return self.average.module if self.average is not None else self.module.clip  # type: ignore[return-value]

    def fit(self, loader: Callable[[tuple[int, int], dict[int, tuple[int, int]]], Iterable[dict[str, Any]]]) -> Fitted:
        """Train to the last step.

        Args:
            loader: ``(first, end), positions -> batches``; counted in micro-batches.

        Raises:
            ClipxError: the loss is not finite, or too many samples are bad.
            Interrupted: a signal came; a checkpoint of the last whole step is written.
        """
        settings, fitted = self.settings, self.fitted
        fitted.steps = self.start
        span = (self.start * settings.accumulate, settings.steps * settings.accumulate)
        progress = TrainingProgress(settings.steps, self.start)
        with StopSignal() as stop, progress:
            if self.start < settings.steps:
                batches = self._timed(iter(loader(span, self.positions)))
                for step in range(self.start, settings.steps):
                    losses = self._step(step, batches)
                    self._after_step(step + 1, losses, progress, stop)
        return fitted

    def _step(self, step: int, batches: Iterator[dict[str, Any]]) -> dict[str, Tensor]:
        began = time.perf_counter()
        factor = schedule_factor(
            step, self.settings.steps, name=self.settings.schedule, warmup=self.settings.warmup,
            cooldown=self.settings.cooldown,
        )
        set_learning_rate(self.optimizer, self.base_rates, factor)
        torch.manual_seed(step_seed(self.seed, step, world()[0]))
        self.wrapped.train()
        for _ in range(self.settings.accumulate):
            batch = self._receive(next(batches))
            with self.accelerator.accumulate(self.wrapped):
                losses = self.wrapped(batch)
                self.accelerator.backward(losses["loss"])
                if self.accelerator.sync_gradients and self.settings.clip_grad_norm is not None:
                    norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip_grad_norm)
                    losses = {**losses, "grad_norm": norm}
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.module.clip.clamp_logit_scale()  # type: ignore[union-attr, operator]
        if self.average is not None:
            self.average.update_parameters(self.module.clip)  # type: ignore[arg-type]
        self._trained += time.perf_counter() - began
        return losses

    def _receive(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._count_bad(batch.pop("bad", ()))
        if "position" in batch:
            worker, epoch, count = batch.pop("position")
            self.positions[int(worker)] = (int(epoch), int(count))
        device = self.accelerator.device
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        moved["image"] = moved["image"].contiguous(memory_format=torch.channels_last)
        self._images += len(moved["image"])
        return moved

    def _count_bad(self, reports: Iterable[tuple[str, str]]) -> None:
        self.fitted.bad.update(reports)
        bad, seen = len(self.fitted.bad), self._images + self.settings.batch_size
        if bad > max(10.0, self.settings.max_bad * seen):
            reason = next(reversed(self.fitted.bad.values()))
            raise ClipxError(
                f"{bad} of the first {seen} samples cannot be used, more than training.max_bad={self.settings.max_bad} "
                f"allows; the last: {reason}",
                hint="look at the data, or raise training.max_bad",
            )

    def _timed(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def _after_step(
        self, done: int, losses: dict[str, Tensor], progress: TrainingProgress, stop: StopSignal
    ) -> None:
        settings, fitted = self.settings, self.fitted
        last = done == settings.steps
        evaluating = self.evaluate is not None and (last or _due(done, settings.evaluate_every))
        saving = last or _due(done, settings.checkpoint_every)
        signum = stop.agreed(self.accelerator.device)
        logging = done == self.start + 1 or done % settings.log_every == 0 or last
        if logging or saving or evaluating or signum or self.accelerator.device.type == "cpu":
            values = {name: float(value.detach()) for name, value in losses.items()}
            self._check_finite(done, values)
        fitted.steps = done
        fitted.seconds = self._trained
        fitted.images_per_second = self._images * self.accelerator.num_processes / max(self._trained, 1e-9)
        fitted.data_wait = self._waited / max(self._trained, 1e-9)
        if logging:
            self._log(done, values, progress)
        if evaluating:
            self._evaluate(done, progress)
        if saving or signum:
            self._save(done)
        if signum and not last:
            raise Interrupted(signum)

    def _log(self, done: int, values: dict[str, float], progress: TrainingProgress) -> None:
        record = {
            **values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "logit_scale": float(self.module.clip.logit_scale.detach()),  # type: ignore[union-attr, operator]
            "images_per_second": self.fitted.images_per_second,
            "data_wait": self.fitted.data_wait,
        }
        self.run.log(step=done, **record)
        self.accelerator.log(record, step=done)
        progress.update(done, values["loss"], self.fitted.images_per_second, self.fitted.data_wait)

    def _evaluate(self, done: int, progress: TrainingProgress) -> None:
        assert self.evaluate is not None
        self.module.eval()
        metrics = self.evaluate(self.clip)
        self.fitted.evaluation = metrics
        self.run.log(step=done, **{f"validation/{name}": value for name, value in metrics.items()})
        self.accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=done)
        progress.note(done, metrics)

    def _check_finite(self, done: int, values: dict[str, float]) -> None:
        if values["loss"] - values["loss"] == 0.0:
            return
        steps = self.checkpoints.steps() if self.checkpoints else []
        good = f"the last good checkpoint is {self.checkpoints.path(steps[-1])}" if steps and self.checkpoints else (
            "there is no checkpoint yet"
        )
        raise ClipxError(
            f"the loss is {values['loss']} at step {done}; {good}",
            hint="lower optim.lr, set training.clip_grad_norm=1, or use training.precision=fp32",
        )

    def _save(self, done: int) -> None:
        self.accelerator.wait_for_everyone()
        if self.checkpoints is None or not self.run.writes:
            return
        training: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "positions": self.positions}
        if self.average is not None:
            training["average"] = self.average.state_dict()
        if self.accelerator.scaler is not None:
            training["scaler"] = self.accelerator.scaler.state_dict()
        state = {
            "best": self.fitted.evaluation.get(self.best),
            "evaluation": self.fitted.evaluation,
            "bad": self.fitted.bad,
        }
        try:
            self.checkpoints.save(done, self.module.state_dict(), training, state)
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            steps = self.checkpoints.steps()
            kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "there is no earlier checkpoint"
            raise ClipxError(
                f"the checkpoint of step {done} could not be written to {self.checkpoints.folder}: {error}; {kept}",
                hint="free some space, then --resume the run" if full else "is the folder writable?",
            ) from error

    def _restore(self) -> None:
        """Go on from the newest checkpoint that can be read; from the start where there is none."""
        if self.checkpoints is None:
            return
        for step, tensors, training, state in self.checkpoints.newest():
            self.module.load_state_dict(tensors)
            self.optimizer.load_state_dict(training["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(training["average"])
            if self.accelerator.scaler is not None and "scaler" in training:
                self.accelerator.scaler.load_state_dict(training["scaler"])
            self.positions = {int(key): tuple(value) for key, value in training["positions"].items()}
            self.fitted.bad = dict(state["bad"])
            self.fitted.evaluation = dict(state["evaluation"])
            self.start = step
            break
        self.run.truncate_metrics(self.start)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator in one step of one process: 63 bits of a hash of all three."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0

"""The loop shared by everything that trains: step, log, evaluate, checkpoint, stop, resume."""

import contextlib
import copy
import dataclasses
import errno
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clipx import console
from clipx.data.fields import TOKEN_FIELDS
from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.run import Interrupted, Run
from clipx.training.background import CannotWrite, CheckpointWriter
from clipx.training.checkpoints import Checkpoints
from clipx.training.distributed import world
from clipx.training.gradient_cache import ChunkEncoder, cached_backward, check_pooled, trained_batch_norm
from clipx.training.module import TrainingModule
from clipx.training.optimizer import schedule_factor, set_learning_rate
from clipx.training.progress import TrainingProgress
from clipx.training.settings import LoopSettings
from clipx.training.sharding import (
    all_finite,
    copy_whole,
    is_sharded,
    keep_scalars,
    load_whole,
    load_whole_optimizer,
    whole,
)
from clipx.training.stopping import StopSignal

_NOTICED = 5.0
"""Seconds within which all processes notice a signal that one of them received."""
Positions = dict[int, tuple[int, ...]]
"""Where the workers of a stream stand, as their batches report it."""


@dataclasses.dataclass
class Fitted:
    """What a training loop has done, over all starts of its run.

    Attributes:
        steps: optimizer steps.
        images: seen, by all processes.
        seconds: of training, waiting for data included, evaluation and checkpoints excluded.
        waited: seconds of these spent waiting for data.
        bad: id -> reason of every sample passed over.
        evaluation: the last evaluation.
        best: the highest value of the metric that decides the best checkpoint, None before the first.
        best_step: where it was measured.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None

    @property
    def images_per_second(self) -> float:
        """Images a second of training."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def data_wait(self) -> float:
        """Share of the training time spent waiting for data, in [0, 1]."""
        return self.waited / max(self.seconds, 1e-9)


class Trainer:
    """Trains a module in a run's directory.

    Args:
        module: the CLIP and what it minimises.
        optimizer: over the module's parameters; its learning rates are the bases of the schedule.
        settings: the loop's.
        run: where metrics and checkpoints go, and whether this is a resume.
        seed: of every random draw: dropout in micro-batch k of process r is a function of (seed, k, r) and
            needs no state.
        accelerator: None builds one from the settings.
        evaluate: called with the CLIP to measure; returns metrics.
        best: the metric of ``evaluate`` (higher is better) that decides which checkpoint is the best.

    Raises:
        ClipxError: a resumed run's checkpoint does not fit, processes see different ones, or an objective
            cannot train with the gradient cache that is asked for.
    """

    def __init__(
        self,
        module: TrainingModule,
        optimizer: Optimizer,
        settings: LoopSettings,
        run: Run,
        *,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        evaluate: Callable[[CLIP], dict[str, float]] | None = None,
        best: str = "top1",
    ) -> None:
        self.settings = settings
        self.run = run
        self.seed = seed
        self.accelerator = accelerator or settings.accelerator()
        self.evaluate = evaluate
        self.best = best
        # Convolutions run faster in channels-last on CPU and GPU alike; other layers do not notice.
        spread = is_sharded(self.accelerator)
        layout = torch.contiguous_format if spread else torch.channels_last  # FSDP takes no other
        self.module = module.to(self.accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        self._plain: TrainingModule | None = None  # of parameters that are spread: whole, to look at
        if spread:
            if settings.ema is not None:
                raise ClipxError("training.ema does not go with FSDP", hint="training.ema=null")
            following = [name for name, each in module.objectives.items() if hasattr(each, "after_step")]
            if following:
                raise ClipxError(
                    f"{' + '.join(following)} follows the weights after each step, and cannot with FSDP",
                    hint="train it with DistributedDataParallel: distributed_type: MULTI_GPU",
                )
            if settings.gradient_cache is not None and any(True for _ in self.module.objectives.parameters()):
                raise ClipxError(
                    "training.gradient_cache does not go with FSDP and an objective that learns a head",
                    hint="training.gradient_cache=null",
                )
            self._plain = copy.deepcopy(self.module)
            keep_scalars(self.accelerator, self.module, optimizer)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.average: AveragedModel | None = None
        if settings.ema is not None:
            average_fn = get_ema_multi_avg_fn(settings.ema)
            self.average = AveragedModel(module, multi_avg_fn=average_fn, use_buffers=True)
            # Statistics of batch norm are averaged; a mask of -inf would turn NaN on the way.
            saved = module.state_dict()
            self._constants = [name for name, _ in module.named_buffers() if name not in saved]
        stepped = self.module if settings.gradient_cache is None else self._chunk_encoder()
        compiled = torch.compile(stepped) if settings.compile else stepped
        self.wrapped, self.optimizer = self.accelerator.prepare(compiled, optimizer)
        self.checkpoints: Checkpoints | None = None
        self._writer: CheckpointWriter | None = None
        if run.directory is not None:
            self.checkpoints = Checkpoints(run.directory / "checkpoints", settings.keep)
            self._writer = CheckpointWriter(self.checkpoints)
        self.fitted = Fitted()
        self.positions: Positions = {}
        self._pending = False  # the evaluation of the last step
        self._losses: list[Tensor] = []  # of the steps since anyone looked
        self._looked, self._look_at = time.perf_counter(), 0  # when, and at which step again
        if run.resumed:
            self._restore()
        self.start = self.fitted.steps

    @property
    def trained(self) -> TrainingModule:
        """The CLIP and its objectives to evaluate and save: the average where there is one."""
        if self._plain is not None:
            return self._plain
        return self.average.module if self.average is not None else self.module  # type: ignore[return-value]

    @property
    def clip(self) -> CLIP:
        """The CLIP to evaluate and save."""
        return self.trained.clip

    def take_best(self) -> int:
        """Put the weights of the best checkpoint in ``trained``; returns the step that they are of.

        The last stay where no evaluation found a best one, or its checkpoint cannot be read.
        """
        step = self.fitted.best_step
        if step is None or self.checkpoints is None or step == self.fitted.steps:
            return self.fitted.steps
        try:
            checkpoint = self.checkpoints.load(step)
        except ClipxError as error:
            console.warn(f"{error.message}; the last weights are kept")
            return self.fitted.steps
        if self.average is not None:
            self.average.load_state_dict(checkpoint.training["average"])
        else:
            self.trained.load_state_dict(checkpoint.tensors)
        return step

    def fit(self, loader: Callable[[tuple[int, int], Positions], Iterable[dict[str, Any]]]) -> Fitted:
        """Train to the last step.

        Args:
            loader: ``(first, end), positions -> batches``; counted in micro-batches.

        Raises:
            ClipxError: the loss is not finite, too many samples are bad, or a checkpoint cannot be written.
            Interrupted: a signal came; a checkpoint of the last whole step is written.
        """
        steps, micro = self.settings.steps, self.settings.accumulate
        progress = TrainingProgress(steps, self.start, shown=self.accelerator.is_main_process)
        with StopSignal() as stop, progress, self._writing():
            if self._pending:
                self._evaluate(progress, stop)
                if not self._pending:
                    self._save(True, last=True)
                elif signum := stop.agreed(self.accelerator.device):
                    raise Interrupted(signum)
            if self.start < steps:
                batches = iter(loader((self.start * micro, steps * micro), self.positions))
                for step in range(self.start, steps):
                    began = time.perf_counter()
                    losses = self._step(step, batches)
                    self._after_step(step + 1, began, losses, progress, stop)
            self._gather()
            for bad in gather_object([self.fitted.bad]):
                self.fitted.bad.update(bad)
            if signum := stop.agreed(self.accelerator.device):
                raise Interrupted(signum)
        return self.fitted

    def _chunk_encoder(self) -> ChunkEncoder:
        check_pooled(self.module.objectives)
        size, batch_size = self.settings.gradient_cache, self.settings.batch_size
        if size != batch_size and trained_batch_norm(self.module.clip) and self.accelerator.is_main_process:
            console.warn(
                f"batch norm takes its statistics from {size} pairs (training.gradient_cache), "
                f"not from {batch_size}: the gradient is not that of the whole batch"
            )
        return ChunkEncoder(self.module)

    def _step(self, step: int, batches: Iterator[dict[str, Any]]) -> dict[str, Tensor]:
        settings = self.settings
        factor = schedule_factor(
            step,
            settings.steps,
            name=settings.schedule,
            warmup=settings.warmup,
            cooldown=settings.cooldown,
            cycles=settings.cycles,
        )
        set_learning_rate(self.optimizer, self.base_rates, factor)
        self.module.progress.fill_(step / settings.steps)
        self.wrapped.train()
        totals: dict[str, Tensor] = {}
        for micro in range(settings.accumulate):
            batch = self._receive(self._next(batches))
            with self.accelerator.accumulate(self.wrapped):
                losses = self._backward(batch, step * settings.accumulate + micro)
                for name, value in losses.items():
                    totals[name] = totals.get(name, 0.0) + value.detach().float() / settings.accumulate
                if self.accelerator.sync_gradients and settings.clip_grad_norm is not None:
                    norm = self.accelerator.clip_grad_norm_(
                        self.wrapped.parameters(), settings.clip_grad_norm
                    )
                    totals["grad_norm"] = whole(norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.module.clip.clamp_logit_scale()
        self.module.after_step((step + 1) / settings.steps)
        if self.average is not None:
            self.average.update_parameters(self.module)
            average, current = dict(self.average.module.named_buffers()), dict(self.module.named_buffers())
            for name in self._constants:
                average[name].copy_(current[name])
        return totals

    def _backward(self, batch: dict[str, Any], number: int) -> dict[str, Tensor]:
        """Add the gradient of micro-batch ``number``; its losses."""
        size, rank = self.settings.gradient_cache, world()[0]
        seed = step_seed(self.seed, number, rank)
        if size is None:
            # Not before the batch is there: a loader that starts draws from the same generator.
            torch.manual_seed(seed)
            losses = self.wrapped(batch)
            self.accelerator.backward(losses["loss"])
            return losses
        chunks = math.ceil(self.settings.batch_size / size)
        seeds = [step_seed(self.seed, number * chunks + chunk, rank) for chunk in range(chunks)]
        return cached_backward(
            self.module,
            self.wrapped,
            batch,
            size=size,
            seeds=seeds,
            seed=seed,
            accelerator=self.accelerator,
        )

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            return next(batches)
        except StopIteration:
            raise ClipxError("the data ended before the last step of training") from None
        finally:
            self.fitted.waited += time.perf_counter() - began

    def _receive(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._count_bad(batch.pop("bad", ()))
        if "position" in batch:
            worker, *place = batch.pop("position")
            self.positions[int(worker)] = tuple(int(number) for number in place)
        for name in TOKEN_FIELDS:
            if name in batch:
                batch[name] = self.module.clip.shorten(batch[name])
        device = self.accelerator.device
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        moved["image"] = moved["image"].contiguous(memory_format=torch.channels_last)
        self.fitted.images += len(moved["image"]) * self.accelerator.num_processes
        return moved

    def _count_bad(self, reports: Iterable[tuple[str, str]]) -> None:
        bad = self.fitted.bad
        bad.update(reports)
        seen = self.fitted.images // self.accelerator.num_processes + self.settings.batch_size
        if len(bad) > max(10.0, self.settings.max_bad * seen):
            reason = next(reversed(bad.values()))
            raise ClipxError(
                f"{len(bad)} of the first {seen} samples cannot be used, more than training.max_bad="
                f"{self.settings.max_bad} allows; the last: {reason}",
                hint="look at the data, or raise training.max_bad",
            )

    def _after_step(
        self, done: int, began: float, losses: dict[str, Tensor], progress: TrainingProgress, stop: StopSignal
    ) -> None:
        settings, fitted, device = self.settings, self.fitted, self.accelerator.device
        fitted.steps = done
        self._losses.append(losses["loss"])
        last = done == settings.steps
        logging = done == 1 or done % settings.log_every == 0 or last
        evaluating = self.evaluate is not None and (last or _due(done, settings.evaluate_every))
        saving = last or _due(done, settings.checkpoint_every)
        alone = self.accelerator.num_processes == 1
        # Looking at a number waits for a GPU, and agreeing for every process: not in every step.
        looking = logging or evaluating or saving or device.type == "cpu" or (alone and stop.received)
        looking = looking or done >= self._look_at
        values = self._look(losses) if looking else {}
        signum = stop.agreed(device) if looking else None
        fitted.seconds += time.perf_counter() - began
        if looking:
            progress.update(done, values["loss"], fitted.images_per_second, fitted.data_wait)
        if logging:
            self._log(values)
        improved = evaluating and self._evaluate(progress, stop)
        if self._pending:
            signum = stop.agreed(device)
        if saving or improved or signum:
            self._save(evaluating and not self._pending, last=last or bool(signum))
        elif self._writer is not None:
            with self._told():
                self._writer.check()
        if signum:
            raise Interrupted(signum)

    def _look(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """The losses of a step, the mean over processes, which agree when to look again.

        Raises:
            ClipxError: in every process alike; the loss or the gradient was not finite since the last look.
        """
        passed = (time.perf_counter() - self._looked) / len(self._losses)
        numbers = torch.stack([*self._losses, *(value.detach().float() for value in losses.values())])
        numbers = torch.cat([numbers, numbers.new_tensor([passed])])
        *found, seconds = self.accelerator.reduce(numbers, "mean").tolist()
        self._looked = time.perf_counter()
        self._look_at = self.fitted.steps + steps_between_looks(seconds)
        history, values = (
            found[: len(self._losses)],
            dict(zip(losses, found[len(self._losses) :], strict=True)),
        )
        first = self.fitted.steps - len(history) + 1
        self._losses = []
        for step, loss in enumerate(history, first):
            if not _finite(loss):
                raise self._diverged(f"the loss is {loss} at step {step}")
        # A gradient that overflows is routine under fp16: its scaler passes over the step.
        if self.accelerator.scaler is None and not _finite(values.get("grad_norm", 0.0)):
            raise self._diverged(f"the gradient is {values['grad_norm']} at step {self.fitted.steps}")
        return values

    def _diverged(self, what: str) -> ClipxError:
        if self._writer is not None:
            with contextlib.suppress(CannotWrite):
                self._writer.wait()
        steps = self.checkpoints.steps() if self.checkpoints else []
        good = "there is no checkpoint yet"
        if steps and self.checkpoints:
            good = f"the last good checkpoint is {self.checkpoints.path(steps[-1])}"
        hint = "lower optim.lr, set training.clip_grad_norm=1, or use training.precision=fp32"
        return ClipxError(f"{what}; {good}", hint=hint)

    def _log(self, values: dict[str, float]) -> None:
        record = {
            **values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "logit_scale": float(self.module.clip.logit_scale.detach()),
            "images_per_second": self.fitted.images_per_second,
            "data_wait": self.fitted.data_wait,
        }
        self.run.log(step=self.fitted.steps, **record)
        self.accelerator.log(record, step=self.fitted.steps)

    def _evaluate(self, progress: TrainingProgress, stop: StopSignal) -> bool:
        """Measure and log; whether this is the best so far.

        A signal breaks it off, for who sends one may not wait: then the evaluation is pending.
        """
        assert self.evaluate is not None
        fitted = self.fitted
        self.module.eval()
        self._gather()
        metrics: dict[str, float] | None = None
        with contextlib.suppress(Interrupted), stop.at_once():
            metrics = self.evaluate(self.clip)
        # Every process measures, so that none waits long for another, and all believe the first.
        (metrics,) = broadcast_object_list([metrics])
        self._pending = metrics is None
        if metrics is None:
            return False
        fitted.evaluation = metrics
        record = {f"validation/{name}": value for name, value in metrics.items()}
        self.run.log(step=fitted.steps, **record)
        self.accelerator.log(record, step=fitted.steps)
        progress.note(fitted.steps, metrics)
        score = metrics.get(self.best)
        if score is None and fitted.best_step is None and self.accelerator.is_main_process:
            console.warn(
                f"the evaluation has no metric {self.best!r}, so no checkpoint is the best; "
                f"it has {', '.join(metrics)}"
            )
        if score is None or (fitted.best is not None and score <= fitted.best):
            return False
        fitted.best, fitted.best_step = score, fitted.steps
        return True

    def _gather(self) -> None:
        """Bring what is evaluated and saved up to date where parameters are spread; collective."""
        if self._plain is not None:
            copy_whole(self.module, self._plain)

    def _save(self, evaluated: bool, *, last: bool) -> None:
        """Write a checkpoint; collective.

        Args:
            evaluated: the metrics at hand are of this step.
            last: training ends here: it is on disk on return. Else it is written while training goes on.

        Raises:
            ClipxError: it, or the one before, cannot be written, or a weight is not finite.
        """
        fitted, done = self.fitted, self.fitted.steps
        tensors = self.module.state_dict()
        if not all_finite(tensors):
            raise self._diverged(f"a weight is not finite after step {done}")
        tensors = whole(tensors, self.run.writes)
        optimizer = whole(self.optimizer.state_dict(), self.run.writes)
        ranks = gather_object([{"positions": self.positions, "bad": fitted.bad}])
        if self._writer is None or not self.run.writes:
            return
        training: dict[str, Any] = {"optimizer": optimizer}
        if self.average is not None:
            training["average"] = self.average.state_dict()
        if self.accelerator.scaler is not None:
            training["scaler"] = self.accelerator.scaler.state_dict()
        state = {
            "best": fitted.evaluation.get(self.best) if evaluated else None,
            "fitted": dataclasses.asdict(dataclasses.replace(fitted, bad={})),
            "ranks": ranks,
            "pending": self._pending,
            "pairs": self.settings.batch_size * self.accelerator.num_processes,
        }
        with self._told():
            (self._writer.write_now if last else self._writer.write)(done, tensors, training, state)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Within the block checkpoints may be written in the background; at its end they are on disk."""
        with self._told(), self._writer or contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say as a user's error that a checkpoint could not be written, and what there is."""
        try:
            yield
        except CannotWrite as failure:
            assert self.checkpoints is not None
            error, steps = failure.error, self.checkpoints.steps()
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            kept = (
                f"the checkpoint of step {steps[-1]} is whole" if steps else "there is no earlier checkpoint"
            )
            raise ClipxError(
                f"the checkpoint of step {failure.step} could not be written to {self.checkpoints.folder}: "
                f"{error.strerror or error}; {kept}",
                hint="free some space, then --resume the run" if full else "is the folder writable?",
            ) from error

    def _restore(self) -> None:
        """Go on from the newest checkpoint that can be read; from the start where there is none."""
        rank, size = world()
        checkpoint = self.checkpoints.newest(aloud=rank == 0) if self.checkpoints else None
        if checkpoint is not None:
            self._check_batches(checkpoint.state, size)
            try:
                self._load(checkpoint.tensors, checkpoint.training, checkpoint.state, rank)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                assert self.checkpoints is not None
                raise ClipxError(
                    f"{self.checkpoints.path(checkpoint.step)} does not fit this configuration: {reason}",
                    hint="was it written by another version of clipx? Start a new run",
                ) from error
        found = gather_object([self.fitted.steps])
        if len(set(found)) > 1:
            raise ClipxError(
                f"processes would go on from different steps: {found}",
                hint="put the outputs where every machine sees them",
            )
        self.run.truncate_metrics(self.fitted.steps)

    def _check_batches(self, state: dict[str, Any], size: int) -> None:
        """Refuse to go on where the batches would be others than those of the run so far.

        Batches of data with an index are cut from one order, whoever takes the parts; the order of a stream
        is that of its readers.
        """
        ranks, pairs = state["ranks"], self.settings.batch_size * size
        read = any(each["positions"] for each in ranks)
        if (read and len(ranks) != size) or state.get("pairs", pairs) != pairs:
            raise ClipxError(
                f"the run had {len(ranks)} processes and batches of {state.get('pairs', '?')} pairs; {size} "
                f"processes with {pairs} cannot go on with it"
                + (", since the order of a stream depends on who reads it" if read else ""),
                hint=f"go on with {len(ranks)} processes and the same batch size",
            )

    def _load(
        self, tensors: dict[str, Tensor], training: dict[str, Any], state: dict[str, Any], rank: int
    ) -> None:
        load_whole(self.module, tensors)
        load_whole_optimizer(self.optimizer, training["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(training["average"])
        if self.accelerator.scaler is not None and "scaler" in training:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        self._pending = bool(state.get("pending"))
        fitted = Fitted(**state["fitted"])
        ranks = state["ranks"]
        if rank < len(ranks):
            positions = ranks[rank]["positions"]
            self.positions = {int(worker): tuple(place) for worker, place in positions.items()}
            # Where there are fewer processes than before, what the others passed over must not be lost.
            for each in ranks[rank :: world()[1]]:
                fitted.bad.update(each["bad"])
        self.fitted = fitted


def steps_between_looks(seconds: float) -> int:
    """Steps of so many seconds until a signal is looked for again: a scheduler may give half a minute."""
    return max(1, int(_NOTICED / max(seconds, 1e-9)))


def step_seed(seed: int, number: int, rank: int) -> int:
    """The seed of torch's generator in one micro-batch of one process: 63 bits of a hash of all three."""
    digest = hashlib.blake2b(f"{seed}/{number}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _finite(value: float) -> bool:
    return value - value == 0.0

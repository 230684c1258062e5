"""How long and how to train."""

import dataclasses
import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from clipx.errors import ClipxError
from clipx.training.group import join_launch
from clipx.training.optimizer import check_schedule

_WHOLE = (
    "steps",
    "batch_size",
    "accumulate",
    "gradient_cache",
    "warmup",
    "cooldown",
    "cycles",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "keep",
)


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How long and how to train; the keys of ``training`` in a configuration.

    Args:
        steps: optimizer steps.
        batch_size: pairs a process and micro-batch.
        accumulate: micro-batches an optimizer step; each is a contrastive batch of its own.
        gradient_cache: pairs whose activations stand in memory at a time, while the objectives see all
            ``batch_size``; None for all.
        schedule: cosine, constant, cooldown or cosine-restarts, after ``warmup`` steps of linear warm-up.
        warmup: steps.
        cooldown: steps of the cooldown schedule.
        cycles: cosines of the cosine-restarts schedule.
        clip_grad_norm: largest norm of the gradient, None for no clipping.
        precision: fp32, bf16 or fp16 of the towers; losses are always float32.
        ema: decay of an exponential moving average of the weights, in (0, 1), which is then what is
            evaluated and saved; None for none.
        compile: torch.compile the module.
        log_every: steps between records of metrics.jsonl.
        evaluate_every: steps between evaluations, None for only at the end.
        checkpoint_every: steps between checkpoints, None for only at the end.
        keep: newest checkpoints to keep, besides the best.
        max_bad: share of the samples seen that may be unusable before the run stops, in [0, 1].

    Raises:
        ClipxError: a value is out of its range.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    gradient_cache: int | None = None
    schedule: str = "cosine"
    warmup: int = 0
    cooldown: int = 0
    cycles: int = 0
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
        for name in _WHOLE:
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ClipxError(f"training.{name}={getattr(self, name)} must be at least 1")
        if self.gradient_cache is not None and not 1 <= self.gradient_cache <= self.batch_size:
            raise ClipxError(
                f"training.gradient_cache={self.gradient_cache} must lie between 1 and the batch size, "
                f"{self.batch_size}, or be null"
            )
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ClipxError(
                    f"training.{name}={getattr(self, name)} must be at least 1, or null for only at the end"
                )
        if self.clip_grad_norm is not None and not 0 < self.clip_grad_norm < math.inf:
            raise ClipxError(
                f"training.clip_grad_norm={self.clip_grad_norm} must be above 0, or null for no clipping"
            )
        if self.precision not in {"fp32", "bf16", "fp16"}:
            raise ClipxError(f"there is no precision {self.precision!r}", hint="valid: fp32, bf16, fp16")
        if self.precision == "fp16" and not torch.cuda.is_available():
            raise ClipxError(
                "training in fp16 needs a GPU", hint="training.precision=bf16 works on a CPU too"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ClipxError(f"training.ema={self.ema} must lie between 0 and 1")
        if not 0 <= self.max_bad <= 1:
            raise ClipxError(f"training.max_bad={self.max_bad} must lie in [0, 1]")
        check_schedule(self.schedule, self.warmup, self.cooldown, self.steps, self.cycles)

    def accelerator(self, **arguments: Any) -> Accelerator:
        """The Accelerator of these settings, whatever an earlier one in this process was told; collective."""
        join_launch()
        # Accelerate keeps one state per process and refuses a second precision; a sweep is one process.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        return Accelerator(
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            gradient_accumulation_steps=self.accumulate,
            step_scheduler_with_optimizer=False,
            **arguments,
        )


def _whole(name: str, value: Any) -> Any:
    """An integer also where it was written as 1e5."""
    if isinstance(value, float):
        if not value.is_integer():
            raise ClipxError(f"training.{name}={value} must be a whole number")
        return int(value)
    return value

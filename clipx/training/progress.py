"""Progress of a training run: a live bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clipx import console

_LINE_EVERY = 10.0
"""Seconds between lines where the output is a file or a pipe."""


class TrainingProgress:
    """Shows step, loss, images a second, share of time spent waiting for data, and time left.

    Args:
        steps: of the whole run.
        start: where this process start begins.
        shown: False in the processes of a launch that say nothing.
    """

    def __init__(self, steps: int, start: int = 0, shown: bool = True) -> None:
        self.steps = steps
        self.start = start
        self.console = console.stderr()
        self.console.quiet |= not shown
        self.live = self.console.is_terminal and not self.console.quiet
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self._task = self._bar.add_task("training", total=steps, completed=start, state="starting")
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, loss: float, images_per_second: float, data_wait: float) -> None:
        """Show the state after ``done`` steps."""
        state = f"loss {loss:.3f}  {images_per_second:,.0f} images/s  data wait {data_wait:.0%}"
        self._bar.update(self._task, completed=done, state=state)
        now = time.monotonic()
        if not self.live and (now - self._spoke > _LINE_EVERY or done == self.steps):
            self._spoke = now
            left = (now - self._began) / max(1, done - self.start) * (self.steps - done)
            self._say(f"step {done}/{self.steps}  {state}  left {left:,.0f} s")

    def note(self, done: int, metrics: dict[str, float]) -> None:
        """Show an evaluation's first metrics: top-1 and recall at 1, or whatever comes first."""
        names = [name for name in metrics if name == "top1" or name.endswith("recall@1")] or list(metrics)[:3]
        shown = "  ".join(f"{name} {metrics[name]:.3f}" for name in names)
        self._say(f"step {done}/{self.steps}  validation: {shown}")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

"""``clipx eval``: make the runs of a suite that are not made yet, in this process, several, or jobs."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from clipx import config, console, launch
from clipx.commands.recipe import Options, perform
from clipx.environment import environment
from clipx.errors import ClipxError
from clipx.files import write_problem
from clipx.machine import cores
from clipx.recipes.processes import MOST, side_by_side
from clipx.recipes.sharing import Shared, shared
from clipx.run import Interrupted, Run, launched
from clipx.suites.cells import Cell
from clipx.suites.index import CellIndex, Entry
from clipx.suites.memory import PeakMemory

_POLL_SECONDS = 0.5
_CELLS_A_PROCESS = 6
"""Cells that are worth the start of a process."""
_Cell = TypeVar("_Cell")


@dataclass
class Work:
    """Cells to be computed, by this process or by jobs that get a copy.

    Attributes:
        cells: in the order of work.
        root: the output root.
        config_dir: the user's own conf directory.
        failed: what was known of failed cells that are to be tried again, by key.
    """

    cells: list[Cell]
    root: Path
    config_dir: str | None = None
    failed: dict[str, Entry] = field(default_factory=dict)

    def left(self, cell: Cell, index: CellIndex) -> bool:
        """Whether a cell is still to be computed; one that failed is tried again once."""
        entry = index.find(cell.key)
        if entry is None or entry.status == "running":
            return True
        return entry.status == "failed" and self.failed.get(cell.key) == entry


class Teller:
    """Says how the work goes on: a bar on a terminal, now and then a line elsewhere.

    Args:
        total: number of cells.
    """

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.total, self.done, self._began = total, 0, time.monotonic()
        self._last, self._said = self._began, set[str]()
        self._screen = console.stderr()
        columns = (
            TextColumn("[bold]cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(
            *columns,
            console=self._screen,
            transient=True,
            disable=not self._screen.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Teller:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, cell: Cell) -> None:
        """A cell is being computed."""
        self._bar.update(self._task, description=cell.label)

    def end(self, done: int) -> None:
        """So many cells are finished."""
        if done <= self.done:
            return
        self.done = done
        self._bar.update(self._task, completed=done)
        now = time.monotonic()
        if not self._screen.is_terminal and (now - self._last >= 10 or done == self.total):
            self._last = now
            rest = console.duration((now - self._began) / done * (self.total - done))
            self.say(f"{done} of {self.total} cells, {rest} left" if done < self.total else f"{done} cells")

    def say(self, message: str, *, once: bool = False) -> None:
        """One line above the bar."""
        if once and message in self._said:
            return
        self._said.add(message)
        self._screen.print(message, highlight=False, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """A warning, once however many cells give it, also under ``--quiet``."""
        if message in self._said:
            return
        self._said.add(message)
        if self._screen.is_terminal:
            self._screen.print(
                f"[bold yellow]warning:[/] {_escaped(message)}", highlight=False, soft_wrap=True
            )
        else:
            console.warn(message)


def main(
    work: Work, *, launcher: str | None = None, jobs: int | None = None, settings: Sequence[str] = ()
) -> dict[str, float]:
    """Compute what is left of the cells; a cell that fails does not stop the others.

    Args:
        work: the cells.
        launcher: of Hydra, to do it in jobs; None to do it on this machine.
        jobs: how many, or how many processes; None for as many as there are cells and cores enough for.
        settings: overrides of the launcher's own.

    Returns:
        How many cells were computed.

    Raises:
        Interrupted: a signal stopped the cell that was being computed.
        ClipxError: the output root cannot be written, or there is no such launcher.
    """
    with Teller(len(work.cells)) as teller:
        if launcher is not None:
            return {"computed": float(_in_jobs(work, teller, launcher, jobs or 2, settings))}
        number = min(jobs or _suitable(len(work.cells)), len(work.cells))
        if number > 1:
            return {"computed": float(_in_processes(work, teller, number))}
        return {"computed": float(compute(work, teller))}


def _suitable(cells: int) -> int:
    """Processes that pay: small cells leave cores idle, a GPU does not; each takes seconds to start."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, min(cores(), MOST, cells // _CELLS_A_PROCESS))


def compute(work: Work, teller: Teller | None = None) -> int:
    """Compute cells in this process until none is left that no other process computes.

    Returns:
        How many cells were computed here.
    """
    index, computed, waiting = CellIndex(work.root), 0, list(work.cells)
    surroundings = environment(launched())
    config.import_from(work.config_dir)
    finished = 0
    with shared() as things:
        while waiting:
            busy = []
            for cell in waiting:
                with index.claim(cell.key) as mine:
                    if not mine:
                        busy.append(cell)
                        continue
                    if work.left(cell, index):
                        if teller is not None:
                            teller.begin(cell)
                        _one(cell, _run_of(cell, work, index, surroundings), work, index, things, teller)
                        computed += 1
                finished += 1
                if teller is not None:
                    teller.end(finished)
            if len(busy) == len(waiting):
                if teller is not None:
                    teller.say(f"waiting for {len(busy)} cells that another process computes", once=True)
                time.sleep(_POLL_SECONDS)
            waiting = busy
    return computed


def _one(cell: Cell, run: Run, work: Work, index: CellIndex, things: Shared, teller: Teller | None) -> None:
    assert run.directory is not None
    place = run.directory.relative_to(work.root).as_posix()
    options = Options(
        command=cell.command, overrides=list(cell.overrides), config_dir=work.config_dir, argv=list(cell.argv)
    )
    settings = OmegaConf.create(cell.settings)
    OmegaConf.set_struct(settings, True)
    before = [(model, _state(model)) for model in things.models()]
    memory = PeakMemory()
    with _logged(run.directory / "log.txt") as log:
        outcome = perform(options, settings, run)
    if outcome.code > 128:
        raise Interrupted(outcome.code - 128)
    status = "failed" if outcome.code else "completed"
    index.note(cell.key, Entry(place, status, outcome.error, outcome.seconds, memory.read()))  # type: ignore[arg-type]
    for model, state in before:
        if _state(model) != state:  # the next cell gets the model as it was
            things.forget(model)
    if teller is not None:
        for warning in _warnings(log):
            teller.warn(warning)
        if outcome.code:
            teller.warn(f"{cell.label}: {outcome.error}")


def _run_of(cell: Cell, work: Work, index: CellIndex, surroundings: dict[str, Any]) -> Run:
    """A run for the cell: the one that was stopped, if there is one, else a new one."""
    entry = index.find(cell.key)
    if entry is not None and entry.status == "running" and entry.run is not None:
        with contextlib.suppress(ClipxError):  # somebody resumed it by hand
            return Run.open(work.root / entry.run, argv=cell.argv)
    run = Run.create(
        work.root,
        cell.command,
        cell.method,
        cell.settings,
        argv=cell.argv,
        overrides=cell.overrides,
        surroundings=surroundings,
    )
    assert run.directory is not None
    try:
        index.note(cell.key, Entry(run.directory.relative_to(work.root).as_posix(), "running"))
    except BaseException:
        run.discard()
        raise
    return run


def _state(model: Any) -> list[tuple[Any, ...]]:
    """What tells whether a model is as it was: its tensors, how often each was written to, what trains."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [
        (name, id(tensor), tensor._version, tensor.requires_grad, model.training)
        for name, tensor in tensors.items()
    ]


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[list[str]]:
    """Within the block what would go to the terminal goes to a file; afterwards its lines are in the list."""
    lines: list[str] = []
    try:
        with path.open("a", encoding="utf-8", errors="replace", buffering=1) as file:
            start = file.tell()
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield lines
    except OSError as problem:
        raise write_problem(problem, path.parent) from problem
    with path.open(encoding="utf-8", errors="replace") as written:
        written.seek(start)
        lines.extend(written.read().splitlines())


def _warnings(lines: Sequence[str]) -> list[str]:
    mark = "warning: "
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def _in_processes(work: Work, teller: Teller, number: int) -> int:
    """Share the cells with other processes of this machine, once the first has encoded what they need."""
    threads = max(1, cores() // number)
    with _limited(threads), _followed(work, teller):
        compute(replace(work, cells=work.cells[:1]), teller)
        with side_by_side(number - 1, _help, work, number, threads):
            compute(work, teller)
    return len(work.cells)


def _help(place: int, work: Work, number: int, threads: int) -> None:
    with _limited(threads), contextlib.suppress(Interrupted, ClipxError):
        compute(replace(work, cells=apart(work.cells, place, number)))


def apart(cells: Sequence[_Cell], place: int, number: int) -> list[_Cell]:
    """All cells, in the order in which one of several processes takes them.

    Neighbours need the same features. Processes that set out together would wait while one encodes them, so
    each sets out elsewhere, every other one backwards.

    Args:
        cells: in the order of the suite, which process 0 keeps.
        place: of the process, in [0, number).
        number: of processes.
    """
    pairs = -(-number // 2)
    first = (place // 2) * len(cells) // pairs
    if place % 2 == 0:
        return [*cells[first:], *cells[:first]]
    end = (place // 2 + 1) * len(cells) // pairs
    return [*reversed(cells[:end]), *reversed(cells[end:])]


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """Within the block torch computes on so many threads: a number that no process of a suite differs in."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_jobs(work: Work, teller: Teller, launcher: str, jobs: int, settings: Sequence[str]) -> int:
    """Let jobs compute the cells, each all that no other has."""
    index = CellIndex(work.root)
    before = sum(not work.left(cell, index) for cell in work.cells)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".jobs-", dir=work.root))
    except OSError as problem:
        raise write_problem(problem, work.root) from problem
    try:
        with _followed(work, teller):
            launch.jobs(
                "eval",
                lambda number: compute(work),
                launcher=launcher,
                number=min(jobs, len(work.cells)),
                settings=settings,
                scratch=scratch,
                config_dir=work.config_dir,
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(work.cells) - before


@contextlib.contextmanager
def _followed(work: Work, teller: Teller) -> Iterator[None]:
    """Within the block tell from the index how far all are; after it, what became of the cells.

    Raises:
        ClipxError: cells are left.
    """
    index, stop = CellIndex(work.root), threading.Event()

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            teller.end(sum(not work.left(cell, index) for cell in work.cells))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    left = [cell for cell in work.cells if work.left(cell, index)]
    teller.end(len(work.cells) - len(left))  # the watcher may not have looked since the last one
    if left:
        raise ClipxError(f"{len(left)} cells were not computed: a job ended early", hint="run it again")
    for cell in work.cells:
        entry = index.find(cell.key)
        if entry is not None and entry.status == "failed":
            teller.warn(f"{cell.label}: {entry.error}")


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")

"""Running a recipe: overrides -> Hydra -> one run, or with ``--multirun`` many -> what is printed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import config, config_errors, console, launch, ranks
from clipx.cli import TOGETHER
from clipx.commands import resume
from clipx.errors import ClipxError
from clipx.files import write_problem
from clipx.run import Interrupted, Run, is_main_process, launched, output_root
from clipx.runs import shown, summary

if TYPE_CHECKING:
    from omegaconf import DictConfig

_FULL = {28, 122, 30, 27}  # ENOSPC, EDQUOT, EROFS, EFBIG


@dataclass(frozen=True)
class Options:
    """The command line of one recipe command."""

    command: str
    overrides: list[str]
    method: str | None = None
    multirun: bool = False
    config_dir: str | None = None
    show_config: bool = False
    resume: str | None = None
    processes: int | None = None
    debug: bool = False
    quiet: bool = False
    json: bool = False
    output_root: str | None = None
    argv: list[str] = field(default_factory=list)


class LostPeer(RuntimeError):
    """What several processes were doing together ended, because one of them did."""


@dataclass
class Outcome:
    """How one run went; ``code`` is the exit code it asks for."""

    code: int
    method: str = ""
    overrides: list[str] = field(default_factory=list)
    run: str | None = None
    seconds: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    next: list[str] = field(default_factory=list)
    error: str | None = None


def execute(options: Options) -> int:
    """Do what the command line asks; returns the exit code.

    Raises:
        ClipxError: the request cannot be carried out; nothing has been started.
    """
    ranks.settle()
    console.configure(quiet=options.quiet, heard=is_main_process())
    config.import_from(options.config_dir)
    root = output_root(options.output_root)
    processes = _processes(options)
    if processes > 1 and not options.show_config:
        _check(options, root)
        return ranks.start(options.argv[1:], processes, debug=options.debug)
    if options.resume and options.resume != resume.AUTO:
        return _resume(options)
    prepared = config.prepare(
        options.command, options.overrides, method=options.method, config_dir=options.config_dir, root=root
    )
    with config_errors.translated(options.command, prepared, options.config_dir):
        for override in prepared:
            config_errors.check_syntax(override)
    with _scratch(options, root) as folder:
        ledger = folder / "jobs.jsonl" if folder else None
        outcomes: list[Outcome] = []
        _hydra_main(options, prepared, folder, outcomes, ledger)
        if ledger is not None and ledger.exists():
            outcomes = [
                Outcome(**json.loads(line)) for line in ledger.read_text(encoding="utf-8").splitlines()
            ]
    if options.show_config:
        return max((outcome.code for outcome in outcomes), default=0)
    return _report(options, outcomes)


def _processes(options: Options) -> int:
    """How many processes this one is to start; 1 where it is to do the work itself."""
    asked = options.processes
    if asked is not None and options.command not in TOGETHER:
        raise ClipxError(
            f"clipx {options.command} works in one process",
            hint=f"--processes is for {', '.join(TOGETHER)}",
        )
    if launched() > 1:
        if asked not in (None, launched()):
            raise ClipxError(
                f"--processes {asked}, but this is one of {launched()} processes already",
                hint="leave --processes out: the launcher has started them",
            )
        return 1
    count = asked or (ranks.asked_of_accelerate() if options.command in TOGETHER else 1)
    if count > 1 and options.multirun:
        raise ClipxError(
            "several processes work on one run, --multirun starts many",
            hint="one command for each run, or leave --processes out",
        )
    return count


def _check(options: Options, root: Path) -> None:
    """Refuse in one process what would be refused in each of several."""
    if options.resume and options.resume != resume.AUTO:
        return
    composed = config.compose(
        options.command, options.overrides, method=options.method, config_dir=options.config_dir, root=root
    )
    config.resolve(composed)


def perform(options: Options, settings: DictConfig, run: Run) -> Outcome:
    """Call the recipe inside its run; however it ends becomes an outcome, a status and, if so, an error."""

    def work() -> dict[str, Any] | None:
        recipe = importlib.import_module(f"clipx.recipes.{options.command}")
        return recipe.main(settings, run)

    own = f" --config-dir {options.config_dir}" if options.config_dir else ""
    own += f" --processes {options.processes}" if options.processes else ""
    return carry_out(
        options,
        run,
        work,
        method=str(settings.get("method", "")),
        go_on=f"clipx {options.command} --resume {run.shown}{own}" if run.directory else None,
    )


def carry_out(
    options: Options,
    run: Run,
    work: Callable[[], dict[str, Any] | None],
    *,
    method: str,
    go_on: str | None,
) -> Outcome:
    """Do the work of a run; however it ends becomes an outcome, a status and, if so, an error.

    Args:
        options: the command line.
        run: is left completed, failed or interrupted.
        work: gives the metrics.
        method: of the run.
        go_on: the command that takes up the work after it was stopped.
    """
    outcome = Outcome(code=0, method=method)
    outcome.run = str(run.directory) if run.directory else None
    try:
        with run, _lost_peers(), _termination(), _prints(options), _disk_problems(run):
            outcome.metrics = console.finite(work() or {})
            run.results({"metrics": outcome.metrics})
    except ClipxError as error:
        outcome.code, outcome.error = 2, error.message
        if options.debug:
            traceback.print_exc()
        _tell(error.message, error.hint)
    except LostPeer as error:
        outcome.code, outcome.error = 1, str(error)
        if is_main_process():
            console.error(outcome.error, go_on)
    except (KeyboardInterrupt, Interrupted) as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        outcome.code, outcome.error = 128 + signum, f"stopped by {signal.Signals(signum).name}"
        if is_main_process():
            console.error(outcome.error, go_on)
    except Exception as error:
        outcome.code, outcome.error = 1, f"{type(error).__name__}: {error}"
        if options.debug:
            traceback.print_exc()
        saved = run.directory / "error.txt" if run.directory else None
        where = f"; it is saved in {saved}" if saved is not None and saved.exists() else ""
        _tell(outcome.error, f"run again with --debug for the traceback{where}")
    if run.directory is not None:
        outcome.seconds = _seconds(run.directory)
    outcome.next = run.next
    return outcome


def _hydra_main(
    options: Options, prepared: list[str], folder: Path | None, outcomes: list[Outcome], ledger: Path | None
) -> None:
    """Hand over to Hydra; its task appends to ``outcomes``, or from any process to ``ledger``."""

    def task(composed: DictConfig) -> float:
        from hydra.core.hydra_config import HydraConfig

        context = HydraConfig.get()
        config.named(composed, options.command, dict(context.runtime.choices))
        outcome = _job(options, composed, list(context.overrides.task))
        if ledger is None or not is_main_process():
            outcomes.append(outcome)
        else:
            with ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        if outcome.code > 128:
            raise Interrupted(outcome.code - 128)  # the rest of a sweep is not wanted either
        key = key_metric(outcome.metrics, composed)
        return float("nan") if key is None else float(outcome.metrics[key])

    with contextlib.suppress(Interrupted):  # its outcome is recorded
        launch.hydra(options.command, task, prepared, scratch=folder, config_dir=options.config_dir)


def _job(options: Options, composed: DictConfig, overrides: list[str]) -> Outcome:
    """One run from its composed configuration; in a sweep it may be in a process of its own."""
    ranks.settle()
    console.configure(quiet=options.quiet, heard=is_main_process())
    config.import_from(options.config_dir)
    shown = [override for override in overrides if not override.startswith("method/")]
    try:
        with config_errors.translated(options.command, overrides, options.config_dir):
            config_errors.check_types(options.command, overrides, options.config_dir)
            if options.show_config:
                with contextlib.suppress(BrokenPipeError):  # Hydra would call it an error of the job
                    _show(composed, options.json)
                return Outcome(code=0)
            settings = config.resolve(composed)
        begun = _begun(options, settings, overrides)
    except ClipxError as error:
        if options.debug:
            traceback.print_exc()
        _tell(error.message, error.hint)
        return Outcome(code=2, method=str(composed.method), overrides=shown, error=error.message)
    outcome = perform(options, begun.settings, begun.run) if begun.run else _finished(begun.directory)
    outcome.method, outcome.overrides = str(settings.method), shown
    return outcome


def _begun(options: Options, settings: DictConfig, overrides: list[str]) -> resume.TakenUp:
    """A new run, or with ``--resume auto`` the one that there is of this configuration."""
    root = output_root(options.output_root)
    found = None
    if options.resume == resume.AUTO:
        found = resume.newest_of_launch(root, settings, options.argv)
    if found is not None:
        return found
    argv = options.argv
    new = Run.create(root, options.command, settings.method, settings, argv=argv, overrides=overrides)
    return resume.TakenUp(new, new.directory, settings)


def _finished(directory: Path | None) -> Outcome:
    """What a run gave that is finished: a job that starts again and again ends with it."""
    assert directory is not None
    console.info(f"{shown(directory)} is finished: there is nothing left to do")
    found = summary(directory)
    return Outcome(code=0, run=str(directory), seconds=found.seconds, metrics=found.metrics)


def _resume(options: Options) -> int:
    if options.multirun:
        raise ClipxError("--resume takes up one run, --multirun starts many", hint="leave one of them out")
    assert options.resume is not None
    directory, settings = resume.named(
        output_root(options.output_root),
        options.resume,
        options.command,
        options.overrides,
        method=options.method,
        config_dir=options.config_dir,
    )
    if options.show_config:
        _show(settings, options.json)
        return 0
    return _report(options, [perform(options, settings, Run.open(directory, argv=options.argv))])


def _show(composed: DictConfig, as_json: bool) -> None:
    from omegaconf import OmegaConf

    with config_errors.translated(str(composed.get("command", "")), [], None):
        if as_json:
            console.json_line(OmegaConf.to_container(composed, resolve=True))
        else:
            sys.stdout.write(OmegaConf.to_yaml(composed, resolve=True))
            sys.stdout.flush()


def _report(options: Options, outcomes: list[Outcome]) -> int:
    """Print what came of it; the exit code is the first that is not 0."""
    code = next((outcome.code for outcome in outcomes if outcome.code), 0)
    done = [outcome for outcome in outcomes if outcome.code == 0]
    if not is_main_process():
        return code
    if options.json:
        if options.multirun:
            console.json_line({"runs": [_as_json(outcome) for outcome in outcomes]})
        elif done:
            console.json_line(_as_json(done[0]))
    elif options.quiet:
        for outcome in done:
            print(outcome.run, flush=True)
    elif options.multirun:
        _sweep_table(outcomes)
    elif done:
        console.metrics_table(done[0].metrics)
        if done[0].run:
            print(f"\nrun   {shown(done[0].run)}  ({console.duration(done[0].seconds)})", flush=True)
        for number, line in enumerate(done[0].next):
            print(("next  " if number == 0 else "      ") + line, flush=True)
    return code


def _sweep_table(outcomes: list[Outcome]) -> None:
    rows = []
    names: list[str] = []
    for outcome in outcomes:
        key = key_metric(outcome.metrics)
        if key is not None and key not in names:
            names.append(key)
    for outcome in outcomes:
        state = {0: "completed", 1: "failed", 2: "failed"}.get(outcome.code, "interrupted")
        where = shown(outcome.run) if outcome.run else "-"
        values = [outcome.metrics.get(name) for name in names]
        rows.append([outcome.method, " ".join(outcome.overrides), state, *values, where])
    console.table(["method", "overrides", "status", *names, "run"], rows, right=names)


def _tell(message: str, hint: str | None) -> None:
    """Print an error, of which the processes of a launch print every one once."""
    group = sys.modules.get("clipx.training.group")  # who has not loaded it has joined no other process
    if group.first_to_say(message) if group is not None else is_main_process():
        console.error(message, hint)


def key_metric(metrics: dict[str, Any], settings: Any = None) -> str | None:
    """The metric that stands for a run: the one its card makes a claim about, else the first number."""
    claim = settings.get("card", {}).get("claim", {}) if settings else {}
    wanted = claim.get("metric") if hasattr(claim, "get") else None
    numbers = [
        name
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return wanted if wanted in numbers else next(iter(numbers), None)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    plain: dict[str, Any] = {"run": outcome.run, "seconds": outcome.seconds}
    if outcome.overrides or outcome.error:
        plain |= {"method": outcome.method, "overrides": outcome.overrides, "error": outcome.error}
    return {**outcome.metrics, **plain}


def _seconds(directory: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((directory / "status.json").read_text(encoding="utf-8")).get("seconds")
    return None


@contextlib.contextmanager
def _prints(options: Options) -> Iterator[None]:
    """Where a recipe's own prints go: nowhere in the processes that leave it to the main process."""
    with open(os.devnull, "w") as nowhere:
        aside = sys.stderr if options.json or options.quiet else sys.stdout
        with contextlib.redirect_stdout(aside if is_main_process() else nowhere):
            yield


@contextlib.contextmanager
def _lost_peers() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        group = sys.modules.get("clipx.training.group")
        if group is None or not group.is_lost_peer(error):
            raise
        raise LostPeer("another process of this launch has ended, and this one with it") from error


@contextlib.contextmanager
def _scratch(options: Options, root: Path) -> Iterator[Path | None]:
    """Where a sweep keeps what it needs while it lasts; beside the runs, so that other machines see it."""
    if not options.multirun:
        yield None
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".sweep-", dir=root))
    except OSError as error:
        raise write_problem(error, root) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM ends a recipe as orderly as Ctrl-C does; a recipe may put handlers of its own in place."""
    received: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        received.append(signum)
        raise KeyboardInterrupt if signum == signal.SIGINT else Interrupted(signum)

    try:
        before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    except Exception as error:
        if received:  # it struck inside a library that made another exception of it
            raise Interrupted(received[0]) from error
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _disk_problems(run: Run) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise write_problem(error, Path(error.filename or run.directory or ".")) from error
        raise

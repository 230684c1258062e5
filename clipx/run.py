"""One run: a numbered output directory that is never overwritten and always tells the truth about itself.

    outputs/<command>/<method>/v0001/
        config.yaml  command.txt  environment.json  status.json  metrics.jsonl  results.json
        figures/  checkpoints/  model/

A live run holds a lock on its ``.lock``; the kernel drops it however the process ends. So a status that says
"running" beside a free lock is a run that was killed, and whoever reads it first puts the status right.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clipx.console import finite
from clipx.errors import ClipxError, did_you_mean

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from types import TracebackType

    from omegaconf import DictConfig

VERSION = re.compile(r"v(\d{4,})")
KILLED = "killed: the process ended without a word"


class Interrupted(BaseException):
    """A run that stopped early because a signal asked it to; not an Exception, so that nothing swallows it.

    Args:
        signum: the signal; the process exits with 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Busy(ClipxError):
    """Another process is working on the run."""


def output_root(given: str | os.PathLike[str] | None = None) -> Path:
    """Where runs live: what was given, else CLIPX_OUTPUTS, else ./outputs."""
    return Path(given or os.environ.get("CLIPX_OUTPUTS") or "outputs").expanduser().absolute()


def launched() -> int:
    """How many processes this one was started with, by torchrun's variables; 1 for one that is alone."""
    given = os.environ.get("WORLD_SIZE", "")
    return int(given) if given.isdigit() and int(given) else 1


def is_main_process() -> bool:
    """Whether this process is the one of its launch that writes (rank 0, or the only one)."""
    rank = os.environ.get("RANK")
    if rank is None and "MASTER_ADDR" in os.environ:  # a bare `srun` of one distributed program
        rank = os.environ.get("SLURM_PROCID")
    return rank in (None, "", "0")


class Run:
    """One run's directory; a context manager that keeps its status right however the block ends.

    Attributes:
        directory: the run's folder; None in a process that does not write and was not told it.
        resumed: whether this run goes on from an earlier start.
        writes: False in the processes of a launch that share the run without writing; there, writing methods
            do nothing.
        next: commands worth trying after this run; the command line prints them at the end.
    """

    def __init__(self, directory: Path | None, *, resumed: bool = False, writes: bool = True) -> None:
        self.directory = directory
        self.resumed = resumed
        self.writes = writes
        self.next: list[str] = []
        self._lock: IO[bytes] | None = None
        self._clock = time.monotonic()
        self._whole: Run = self

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        command: str,
        method: str,
        config: DictConfig | dict[str, Any],
        *,
        argv: Sequence[str] | None = None,
        overrides: Sequence[str] = (),
        surroundings: dict[str, Any] | None = None,
    ) -> Run:
        """Claim the next version under ``root/command/method`` and write what is known at the start.

        Args:
            root: the output root, made if absent.
            command, method: names that become folders.
            config: the resolved configuration.
            argv: the command line as given; sys.argv by default.
            overrides: what the user changed, kept so that a resume can tell whether it asks for the same.
            surroundings: what ``environment`` gave, of a process that starts many runs; None to look now.

        Raises:
            ClipxError: the folder cannot be written.
        """
        if not is_main_process():
            return cls(None, writes=False)
        family = Path(root).expanduser().absolute() / command / method
        with _explained(family):
            family.mkdir(parents=True, exist_ok=True)
            directory = _claim(family)
        run = cls(directory)
        try:
            run._acquire()
            run._write_status({"status": "running", "started": _now(), "ended": None, "seconds": 0.0})
            run._write("config.yaml", _yaml(config))
            run._write("command.txt", _command_line(argv) + "\n")
            found = environment() if surroundings is None else surroundings
            run._write("environment.json", _json({**found, "overrides": list(overrides)}))
        except BaseException:
            run.discard()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, argv: Sequence[str] | None = None) -> Run:
        """Take up a run that stopped before its end.

        Raises:
            ClipxError: there is no run at ``path``, it is finished, or another process is working on it.
        """
        directory = Path(path).expanduser().absolute()
        if not is_run(directory):
            raise ClipxError(f"{directory} is not a run", hint="clipx runs lists the runs there are")
        if not is_main_process():
            return cls(directory, resumed=True, writes=False)
        run = cls(directory, resumed=True)
        run._acquire()
        status = _load_json(directory / "status.json")
        if status.get("status") == "completed":
            run._release()
            raise ClipxError(
                f"{directory} is finished", hint="start a new run, or give its model to another command"
            )
        run._write_status({**status, "status": "running", "ended": None, "error": None, "resumed": _now()})
        with run._guarded():
            _drop_partial_line(directory / "metrics.jsonl")
            with (directory / "command.txt").open("a", encoding="utf-8") as file:
                file.write(_command_line(argv) + "\n")
        return run

    def discard(self) -> None:
        """Take back a run in which nothing was done yet."""
        self._release()
        if self.writes and self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def began_with(self) -> int | None:
        """Processes that a resumed run began with; None for a run that begins now, or where nothing says."""
        whole = self._whole.directory
        if whole is None or not self.resumed:
            return None
        known = _load_json(whole / "environment.json").get("processes")
        return known if isinstance(known, int) else None

    @property
    def shown(self) -> str:
        """The run's directory as a person at this prompt would name it: relative where it lies below."""
        return shown(self.directory) if self.directory is not None else ""

    def path(self, *parts: str) -> Path:
        """The path of a folder or file of this run; ``path("figures")`` makes the folder.

        A last part with a suffix is a file: only its folder is made.

        Raises:
            RuntimeError: this process was not told the run's directory.
            ClipxError: the folder cannot be made.
        """
        if self.directory is None:
            raise RuntimeError("only the main process knows the run's directory")
        target = self.directory.joinpath(*parts)
        if self.writes:
            with self._guarded():
                (target.parent if target.suffix else target).mkdir(parents=True, exist_ok=True)
        return target

    def part(self, *parts: str) -> Run:
        """A folder of this run with metrics, results and checkpoints of its own, under its status and lock.

        Raises:
            ClipxError: the folder cannot be made.
        """
        if self.directory is None:
            return Run(None, writes=False)
        own = Run(self.path(*parts), resumed=self.resumed, writes=self.writes)
        own._whole = self._whole
        return own

    def log(self, *, step: int, **scalars: Any) -> None:
        """Append one record to metrics.jsonl, with one write, so that a reader never sees half of it."""
        if not self.writes:
            return
        record = finite({"step": int(step), **{name: _scalar(value) for name, value in scalars.items()}})
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with self._guarded():
            descriptor = os.open(self._file("metrics.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first; a line cut off by a crash is left out."""
        return read_metrics(self.directory) if self.directory else []

    def truncate_metrics(self, step: int) -> None:
        """Drop the records after ``step``, as a resume from that step's checkpoint needs."""
        if not self.writes or not self._file("metrics.jsonl").exists():
            return
        kept = [record for record in self.metrics() if record.get("step", 0) <= step]
        self._write(
            "metrics.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        )

    def read_results(self) -> dict[str, Any]:
        """What results.json holds; empty where there is none yet."""
        return _load_json(self._file("results.json"))

    def results(self, values: dict[str, Any]) -> None:
        """Merge ``values`` into results.json (the final metrics stand under ``metrics``)."""
        if self.writes:
            known = _load_json(self._file("results.json"))
            self._write("results.json", _json({**known, **values}))

    def write_text(self, name: str, text: str) -> None:
        """Write one file of the run atomically: readers see the old content or the new, never a part."""
        if self.writes:
            self.path(name)
            self._write(name, text)

    def end(self, status: str, error: str | None = None) -> None:
        """Record how the run ended and let go of it; "completed", "interrupted" or "failed"."""
        if self.writes and self._lock is not None:
            try:
                known = _load_json(self._file("status.json"))
                self._write_status({**known, "status": status, "ended": _now(), "error": error})
            finally:
                self._release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end("completed")
            return
        status, message = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, Interrupted):
            status, message = "interrupted", str(error)
        elif isinstance(error, KeyboardInterrupt):
            status, message = "interrupted", "stopped by SIGINT"
        elif isinstance(error, ClipxError):
            message = error.message
        # What went wrong matters more than what goes wrong while it is written down.
        with contextlib.suppress(ClipxError):
            if status == "failed" and not isinstance(error, ClipxError):
                self.write_text("error.txt", "".join(traceback.format_exception(kind, error, trace)))
        with contextlib.suppress(ClipxError):
            self.end(status, message)

    def _file(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / name

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        assert self.directory is not None
        return _explained(self.directory)

    def _write(self, name: str, text: str) -> None:
        with self._guarded():
            write_atomic(self._file(name), text)

    def _write_status(self, values: dict[str, Any]) -> None:
        now = time.monotonic()
        seconds = values.get("seconds") or 0.0
        status = {
            "status": values["status"],
            "started": values.get("started"),
            "ended": values.get("ended"),
            "seconds": round(seconds + (now - self._clock), 3),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "error": values.get("error"),
            **({"resumed": values["resumed"]} if values.get("resumed") else {}),
        }
        self._clock = now
        target = self._file("status.json")
        with self._guarded():
            try:
                write_atomic(target, _json(status))
            except OSError:
                # On a full disk the block that the old status occupies is still ours to fill.
                if not target.exists():
                    raise
                target.write_text(_json(status), encoding="utf-8")

    def _acquire(self) -> None:
        target = self._file(".lock")
        with self._guarded():
            target.touch()
        try:
            patience = time.monotonic() + 2.0  # a reader that looks at the lock holds it for a moment
            while (lock := hold(target)) is None and time.monotonic() < patience:
                time.sleep(0.02)
        except OSError:
            self._lock = target.open("ab")  # no locks on this file system: the pid in the status must do
            return
        if lock is None:
            pid = _load_json(self._file("status.json")).get("pid", "?")
            raise Busy(
                f"process {pid} is working on {self.directory}",
                hint="wait for it, or stop it, and then resume",
            )
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            let_go(self._lock)
            self._lock = None


@dataclass(frozen=True)
class Summary:
    """What a run's files say about it; ``status`` is running, completed, interrupted or failed."""

    path: Path
    command: str
    method: str
    version: str
    status: str
    started: str | None
    ended: str | None
    seconds: float | None
    error: str | None
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.command}/{self.method}/{self.version}"

    @property
    def metrics(self) -> dict[str, Any]:
        found = self.results.get("metrics")
        return found if isinstance(found, dict) else {}

    @property
    def age(self) -> float | None:
        """Seconds since the run began."""
        if self.started is None:
            return None
        return (datetime.now(UTC) - datetime.fromisoformat(self.started)).total_seconds()


def shown(path: str | os.PathLike[str]) -> str:
    """A path relative to the working directory where it lies below it, else as it is."""
    relative = os.path.relpath(path)
    return os.fspath(path) if relative.startswith("..") else relative


def is_run(path: Path) -> bool:
    """Whether ``path`` is the directory of a run."""
    return (path / "config.yaml").is_file() and VERSION.fullmatch(path.name) is not None


def summary(path: Path) -> Summary:
    """Read one run's state, putting right the status of a run that was killed."""
    status = read_status(path)
    seconds = status.get("seconds")
    if status["status"] == "running" and status.get("started"):
        since = datetime.fromisoformat(status.get("resumed") or status["started"])
        seconds = (seconds or 0.0) + (datetime.now(UTC) - since).total_seconds()
    return Summary(
        path=path,
        command=path.parent.parent.name,
        method=path.parent.name,
        version=path.name,
        status=status["status"],
        started=status.get("started"),
        ended=status.get("ended"),
        seconds=seconds,
        error=status.get("error"),
        results=_load_json(path / "results.json"),
    )


def all_runs(root: Path, command: str | None = None, method: str | None = None) -> list[Summary]:
    """Every run under ``root`` (of a command, of a method), the oldest first."""
    found = [
        summary(path)
        for path in root.glob(f"{command or '*'}/{method or '*'}/v*")
        if VERSION.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(
        found, key=lambda run: (run.started or "", run.command, run.method, len(run.version), run.version)
    )


def find_run(
    root: Path,
    reference: str,
    *,
    command: str | None = None,
    method: str | None = None,
    holding: str | None = None,
) -> Path:
    """The directory that a person means by ``v0003``, ``infonce/v0003``, ``pretrain/infonce/v0003``,
    ``latest``, ``pretrain/latest``, ``pretrain/infonce`` (its latest) or a path.

    Args:
        root: the output root.
        reference: as above.
        command, method: where to look, when known.
        holding: only runs with this folder, such as ``model``, count for ``latest``.

    Raises:
        ClipxError: no run fits, or several do.
    """
    direct = Path(reference).expanduser().absolute()
    if is_run(direct):
        return direct
    runs = all_runs(root, command, method)
    parts = [part for part in reference.strip("/").split("/") if part]
    version = parts.pop() if parts and (parts[-1] == "latest" or VERSION.fullmatch(parts[-1])) else "latest"
    fitting = [
        run
        for run in runs
        if parts in ([], [run.command], [run.method], [run.command, run.method])
        and (version in ("latest", run.version))
        and (holding is None or (run.path / holding).is_dir())
    ]
    if not fitting:
        hint = (
            did_you_mean(reference, [run.name for run in runs])
            if runs
            else f"there are no runs in {root} yet"
        )
        raise ClipxError(f"no run {reference!r}" + (f" with a {holding}/" if holding else ""), hint=hint)
    if len(fitting) > 1 and version != "latest":
        raise ClipxError(
            f"{reference!r} could be several runs",
            hint="say which: " + ", ".join(run.name for run in fitting),
        )
    return fitting[-1].path


def read_status(path: Path) -> dict[str, Any]:
    """The status of the run at ``path``, with a killed run recognised and its status.json mended."""
    status = _load_json(path / "status.json")
    if status.get("status") not in (None, "running"):
        return status
    try:
        lock = _try_lock(path / ".lock", "rb")
    except FileNotFoundError:  # being born, or stillborn
        return {**status, "status": "interrupted"}
    except OSError:  # no locks here, or not for us to open
        return _mend(path, status) if _is_dead(status) else {"status": "running", **status}
    if lock is None:
        return {"status": "running", **status}
    with lock:
        # It may have ended between our reading and our locking.
        status = _load_json(path / "status.json")
        if status.get("status") == "running":
            return _mend(path, status)
        return {"status": "interrupted", **status}


def overrides_of(path: Path) -> list[str]:
    """What the user changed when the run at ``path`` began, as Hydra takes it."""
    found = _load_json(path / "environment.json").get("overrides")
    return [str(each) for each in found] if isinstance(found, list) else []


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, oldest first; a line cut off by a crash is left out."""
    try:
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def environment() -> dict[str, Any]:
    """What a result may depend on: versions, platform, git commit of the working directory, cores."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu_count": os.cpu_count(),
        "processes": launched(),
        "directory": os.getcwd(),
        "executable": sys.executable,
        "packages": packages,
        "git": _git_state(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def hold(path: Path) -> IO[bytes] | None:
    """Lock the file at ``path``, made where missing, until ``let_go`` or the end of this process.

    Returns:
        The open file that holds the lock; None where another process holds it.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    lock = _try_lock(path, "ab")
    if lock is not None:
        _held.add(lock)
    return lock


def let_go(lock: IO[bytes]) -> None:
    """Drop a lock that ``hold`` gave."""
    _held.discard(lock)
    lock.close()


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a crash leaves the old content or the new, and nothing else.

    Raises:
        OSError: as the file system says.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_problem(error: OSError, folder: Path) -> ClipxError:
    """A file-system error as the user's problem: which folder, and what to do."""
    reason = error.strerror or type(error).__name__
    return ClipxError(
        f"cannot write to {folder}: {reason}",
        hint="free some space there, or choose another folder with --output-root DIR (or CLIPX_OUTPUTS)",
    )


_PACKAGES = [
    "clipx",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "accelerate",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "pyarrow",
    "safetensors",
    "webdataset",
    "matplotlib",
]
_VARIABLES = [
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTHONHASHSEED",
    "SLURM_JOB_ID",
    "WORLD_SIZE",
]
_held: set[IO[bytes]] = set()
_UMASK = os.umask(0)
os.umask(_UMASK)


def _forget_locks() -> None:
    for lock in _held:
        lock.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    # A forked worker that outlives a killed run must not keep its lock.
    os.register_at_fork(after_in_child=_forget_locks)


def _claim(family: Path) -> Path:
    taken = [int(match[1]) for entry in os.listdir(family) if (match := VERSION.fullmatch(entry))]
    number = max(taken, default=0) + 1
    while True:
        directory = family / f"v{number:04d}"
        try:
            directory.mkdir()
            return directory
        except FileExistsError:  # another start was quicker
            number += 1


def _try_lock(path: Path, mode: str) -> IO[bytes] | None:
    """An open file that holds the lock; None where another process holds it.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "no file locks")
    file: IO[bytes] = open(path, mode)  # noqa: SIM115 - it stays open for as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        file.close()
        raise
    return file


def _mend(path: Path, status: dict[str, Any]) -> dict[str, Any]:
    last = max((entry.stat().st_mtime for entry in path.iterdir()), default=time.time())
    mended = {**status, "status": "interrupted", "error": KILLED}
    mended["ended"] = datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds")
    if status.get("started"):
        since = datetime.fromisoformat(status.get("resumed") or status["started"])
        lived = (datetime.fromisoformat(mended["ended"]) - since).total_seconds()
        mended["seconds"] = round((status.get("seconds") or 0.0) + max(lived, 0.0), 3)
    with contextlib.suppress(OSError):  # another user's run, or a full disk: report it rightly all the same
        write_atomic(path / "status.json", _json(mended))
    return mended


def _is_dead(status: dict[str, Any]) -> bool:
    """Whether the process that a status names is gone; of another machine's processes nothing is known."""
    import psutil

    return status.get("host") == socket.gethostname() and not psutil.pid_exists(int(status.get("pid") or -1))


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_problem(error, folder) from error


def _drop_partial_line(path: Path) -> None:
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _json(value: Any) -> str:
    return json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n"


def _yaml(config: DictConfig | dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config) if isinstance(config, dict) else config, resolve=True)


def _command_line(argv: Sequence[str] | None) -> str:
    return shlex.join(["clipx", *sys.argv[1:]] if argv is None else argv)


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}

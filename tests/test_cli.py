"""The command line: instant help, runs that tell the truth, errors without a traceback."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest
import yaml

from clipx import cli, console
from clipx.errors import ClipxError
from clipx.run import Interrupted, Run
from clipx.runs import read_status


def stub(config, run):
    """A recipe whose seed decides what happens to it."""
    stub.seen.append((config, run))
    run.log(step=1, loss=0.5)
    print("the recipe speaks")
    match config.seed:
        case 13:
            raise ValueError("bad luck")
        case 14:
            raise ClipxError("no data", "give some")
        case 15:
            raise KeyboardInterrupt
        case 16:
            raise Interrupted(signal.SIGTERM)
        case 17:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        case 18:
            raise OSError(28, "No space left on device", "/data/cache")
        case 19:
            raise FileNotFoundError(2, "No such file or directory", "gone.jpg")
        case 20:
            return None
    run.next = ["clipx zeroshot model=latest"]
    return {"loss": 0.1, "top1": 0.5 + config.seed / 10, "top1_ci": 0.01}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty working directory, with the stub in the place of both recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPX_OUTPUTS", raising=False)
    monkeypatch.setattr(console, "_quiet", False)
    stub.seen = []
    for name in ("pretrain", "zeroshot"):
        module = types.ModuleType(name)
        module.main = stub
        monkeypatch.setitem(sys.modules, f"clipx.recipes.{name}", module)
    return tmp_path


@pytest.fixture
def clipx(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["clipx", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return types.SimpleNamespace(code=exit_.value.code, out=printed.out, err=printed.err)

    return call


def started(*arguments, code=None, **kwargs):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "clipx", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)


HELP = [
    [],
    ["--help"],
    ["pretrain", "--help"],
    ["zeroshot", "-h"],
    ["methods", "-h"],
    ["runs", "--help"],
    ["--version"],
]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_loads_nothing_heavy(arguments):
    code = f"""
        import sys
        sys.argv = ["clipx", *{arguments!r}]
        from clipx.cli import main
        try:
            main()
        finally:
            print("LOADED", *sys.modules)
    """
    done = started(code=textwrap.dedent(code))
    assert done.returncode == 0
    loaded = set(done.stdout.split("LOADED")[1].split())
    assert not loaded & {
        "torch",
        "hydra",
        "omegaconf",
        "open_clip",
        "numpy",
        "rich.console",
        "pydantic",
        "yaml",
        "PIL",
    }


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"]], ids=" ".join)
def test_help_is_instant(arguments):
    def seconds():  # of the processor: what else the machine does at the moment does not count
        before = os.times()
        started(*arguments)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.3


def test_every_help_shows_examples(clipx):
    for command in ("", "pretrain", "zeroshot", "methods", "runs", "scenes"):
        shown = clipx(*command.split(), "--help").out
        assert shown.count(f"clipx {command}".strip()) >= 3, command
    assert clipx().out == clipx("--help").out


def test_listing_methods_loads_neither_hydra_nor_torch():
    code = "import sys; sys.argv = ['clipx', 'methods']\nfrom clipx.cli import main\n"
    code += "try: main()\nfinally: print('LOADED', *sys.modules)"
    loaded = set(started(code=code).stdout.split("LOADED")[1].split())
    assert not loaded & {"torch", "hydra", "omegaconf"}


def test_a_run_prints_its_metrics_its_place_and_what_to_try_next(clipx):
    done = clipx("pretrain", "seed=1", "--method", "siglip", "optim.lr=0.5")
    assert done.code == 0
    assert done.err == ""
    assert "the recipe speaks" in done.out
    assert "top1    0.6 ± 0.01" in done.out
    assert "run   outputs/pretrain/siglip/v0001" in done.out
    assert "next  clipx zeroshot model=latest" in done.out
    config, run = stub.seen[0]
    assert (config.seed, config.method, config.optim.lr) == (1, "siglip", 0.5)
    assert not run.resumed
    directory = Path("outputs/pretrain/siglip/v0001")
    assert json.loads((directory / "results.json").read_text())["metrics"]["top1"] == 0.6
    assert (directory / "command.txt").read_text() == "clipx pretrain seed=1 --method siglip optim.lr=0.5\n"
    assert yaml.safe_load((directory / "config.yaml").read_text())["method"] == "siglip"
    assert read_status(directory)["status"] == "completed"


def test_nothing_but_the_run_is_left_behind(clipx, home):
    assert clipx("pretrain").code == 0
    assert clipx("pretrain", "-m", "seed=1,2").code == 0
    assert [entry.name for entry in home.iterdir()] == ["outputs"]
    assert [entry.name for entry in (home / "outputs").iterdir()] == ["pretrain"]
    runs = sorted(home.glob("outputs/*/*/*"))
    assert [run.name for run in runs] == ["v0001", "v0002", "v0003"]
    kept = {
        ".lock",
        "config.yaml",
        "command.txt",
        "environment.json",
        "status.json",
        "metrics.jsonl",
        "results.json",
    }
    for run in runs:
        assert {entry.name for entry in run.iterdir()} == kept


def test_json_is_one_object_and_alone_on_stdout(clipx, home):
    done = clipx("pretrain", "--json", "seed=2")
    result = json.loads(done.out)
    assert result["top1"] == 0.7
    assert result["run"] == str(home / "outputs" / "pretrain" / "infonce" / "v0001")
    assert "the recipe speaks" in done.err


def test_quiet_prints_the_place_alone(clipx, home):
    done = clipx("zeroshot", "--quiet", "--output-root", "elsewhere")
    assert done.out.strip().startswith(str(home / "elsewhere" / "zeroshot"))
    assert len(done.out.splitlines()) == 1


def test_the_output_root_may_come_from_the_environment(clipx, home, monkeypatch):
    monkeypatch.setenv("CLIPX_OUTPUTS", str(home / "there"))
    assert clipx("pretrain", "seed=20").code == 0
    assert (home / "there" / "pretrain" / "infonce" / "v0001").is_dir()


@pytest.mark.parametrize(
    ("seed", "code", "status", "said"),
    [
        (13, 1, "failed", ["error: ValueError: bad luck", "--debug", "v0001/error.txt"]),
        (14, 2, "failed", ["error: no data", "hint: give some"]),
        (15, 130, "interrupted", ["error: stopped by SIGINT", "clipx pretrain --resume"]),
        (16, 143, "interrupted", ["error: stopped by SIGTERM"]),
        (17, 143, "interrupted", ["error: stopped by SIGTERM"]),
        (18, 2, "failed", ["error: cannot write to /data/cache: No space left", "hint: free some space"]),
        (19, 1, "failed", ["error: FileNotFoundError", "gone.jpg"]),
    ],
)
def test_however_a_recipe_ends_it_is_told_and_recorded(clipx, seed, code, status, said):
    done = clipx("pretrain", f"seed={seed}")
    assert done.code == code
    for text in said:
        assert text in done.err
    assert "Traceback" not in done.err
    assert read_status(Path("outputs/pretrain/infonce/v0001"))["status"] == status


@pytest.mark.parametrize("seed", [13, 14])
def test_debug_shows_the_traceback(clipx, seed):
    assert "in stub" in clipx("pretrain", f"seed={seed}", "--debug").err


def test_debug_shows_the_traceback_of_a_wrong_configuration(clipx):
    done = clipx("pretrain", "optim.lrr=1", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err


def test_a_sweep_runs_every_combination_and_goes_on_after_a_failure(clipx):
    done = clipx("pretrain", "-m", "--method", "infonce,siglip", "seed=1,13,2")
    assert done.code == 1
    assert [config.seed for config, _ in stub.seen] == [1, 13, 2, 1, 13, 2]
    rows = [line.split() for line in done.out.splitlines() if line.startswith(("infonce", "siglip"))]
    assert [row[:3] for row in rows] == [
        [method, f"seed={seed}", status]
        for method in ("infonce", "siglip")
        for seed, status in ((1, "completed"), (13, "failed"), (2, "completed"))
    ]


def test_a_sweep_over_ranges_and_models_reports_as_json(clipx):
    done = clipx("pretrain", "--multirun", "seed=range(1,3)", "model=micro,ViT-B-32", "--json")
    runs = json.loads(done.out)["runs"]
    assert [(run["top1"], run["overrides"]) for run in runs] == [
        (0.6, ["seed=1", "model=micro"]),
        (0.6, ["seed=1", "model=ViT-B-32"]),
        (0.7, ["seed=2", "model=micro"]),
        (0.7, ["seed=2", "model=ViT-B-32"]),
    ]
    assert [config.model.name for config, _ in stub.seen] == ["micro", "ViT-B-32"] * 2


def test_an_interrupted_sweep_stops(clipx):
    done = clipx("pretrain", "-m", "seed=1,16,2")
    assert done.code == 143
    assert len(stub.seen) == 2
    assert "interrupted" in done.out


def test_a_wrong_value_in_a_sweep_is_one_failed_run(clipx):
    done = clipx("pretrain", "-m", "seed=1,abc")
    assert done.code == 2
    assert "expected a number" in done.err
    assert len(stub.seen) == 1


def test_hydras_own_launchers_work(home):
    """Jobs of the joblib launcher run in processes of their own; their results come back all the same."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (home / "site").mkdir()
    (home / "site" / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = types.ModuleType('pretrain')\n"
        "module.main = lambda config, run: {'top1': float(config.seed)}\n"
        "sys.modules['clipx.recipes.pretrain'] = module\n"
    )
    arguments = ["pretrain", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=3,4", "--json"]
    done = started(*arguments, env={**os.environ, "PYTHONPATH": str(home / "site")})
    assert done.returncode == 0, done.stderr
    assert sorted(run["top1"] for run in json.loads(done.stdout)["runs"]) == [3.0, 4.0]
    assert {entry.name for entry in home.iterdir()} == {"site", "outputs"}
    assert {entry.name for entry in (home / "outputs").iterdir()} == {"pretrain"}


def test_the_configuration_is_shown_and_nothing_is_run(clipx, home):
    done = clipx("pretrain", "--show-config", "seed=4", "optim.lr=${seed}", "data=folder")
    shown = yaml.safe_load(done.out)
    assert (shown["seed"], shown["optim"]["lr"], shown["data"]["root"]) == (4, 4, "???")
    assert json.loads(clipx("pretrain", "--show-config", "--json").out)["command"] == "pretrain"
    assert list(home.iterdir()) == []
    assert stub.seen == []


def test_the_users_own_card_and_module_are_used(clipx, home):
    folder = home / "own"
    (folder / "method" / "pretrain").mkdir(parents=True)
    card = "# @package _global_\ncard: {title: Mine, year: 2026}\nobjectives: {}\nseed: 6\n"
    (folder / "method" / "pretrain" / "mine.yaml").write_text(card)
    (folder / "clipx_cli_part.py").write_text("")
    assert clipx("pretrain", "--method", "mine", "--config-dir", "own").code == 0
    assert stub.seen[0][0].seed == 6
    assert str(folder) in sys.path
    sys.path.remove(str(folder))
    assert "Mine" in clipx("methods", "--config-dir", "own").out
    assert clipx("pretrain", "--config-dir", "nowhere").code == 2


def test_a_stopped_run_is_taken_up_where_it_was(clipx):
    assert clipx("pretrain", "seed=15", "optim.lr=0.5").code == 130
    done = clipx("pretrain", "--resume", "v0001", "seed=15", "--method", "infonce")
    assert done.code == 130
    config, run = stub.seen[1]
    assert run.resumed
    assert config.optim.lr == 0.5
    assert len(list(Path("outputs/pretrain/infonce").iterdir())) == 1
    assert yaml.safe_load(clipx("pretrain", "--resume", "latest", "--show-config").out)["optim"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--resume", "v0001", "seed=3", "optim.lr=0.5"],
            "these differ: optim.lr (0.002 -> 0.5), seed (15 -> 3)",
        ),
        (["--resume", "v0001", "data=folder"], "these differ: data."),
        (["--resume", "infonce/v0001", "--method", "siglip"], "no run 'infonce/v0001'"),
        (["--resume", "v0001", "-m"], "--multirun starts many"),
        (["--resume", "v0009"], "no run 'v0009'"),
    ],
)
def test_a_resume_that_asks_for_something_else_is_refused(clipx, arguments, said):
    clipx("pretrain", "seed=15")
    done = clipx("pretrain", *arguments)
    assert done.code == 2
    assert said in done.err
    assert len(stub.seen) == 1


def test_a_finished_run_and_a_run_of_another_command_are_not_resumed(clipx, home):
    clipx("pretrain")
    assert "is finished" in clipx("pretrain", "--resume", "latest").err
    path = str(home / "outputs" / "pretrain" / "infonce" / "v0001")
    done = clipx("zeroshot", "--resume", path)
    assert done.code == 2
    assert "is a run of pretrain" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrian"], ["no command 'pretrian'", "did you mean 'pretrain'"]),
        (["runs", "shw"], ["no command 'shw'", "did you mean 'show'"]),
        (["pretrain", "--methd", "x"], ["no option '--methd'", "did you mean '--method'"]),
        (["pretrain", "--optim.lr=1"], ["no option '--optim.lr", "settings have no dashes: optim.lr"]),
        (["pretrain", "--method"], ["--method", "clipx pretrain --help"]),
        (["pretrain", "--method", "infonc"], ["no method 'infonc'", "did you mean 'infonce'"]),
        (["pretrain", "data=foldr"], ["no choice 'foldr' for data", "did you mean 'folder'"]),
        (["pretrain", "data=folder"], ["data.root must be given", "data.root=..."]),
        (["pretrain", "optim.lrr=1"], ["no key 'optim.lrr'", "did you mean optim.lr?"]),
        (["scenes"], ["--grid", "clipx scenes --help"]),
        (["scenes", "--grid", "a.png", "--count", "none"], ["--count", "clipx scenes --help"]),
        (["scenes", "--grid", "a.png", "seed=1"], ["'seed=1' is not a setting of the data"]),
        (["scenes", "--grid", "a.png", "data.sed=1"], ["no key 'data.sed'", "data.seed"]),
        (["methods", "pretran"], ["no methods for 'pretran'", "did you mean 'pretrain'"]),
        (["methods", "show", "infonc"], ["no method 'infonc'", "did you mean 'infonce'"]),
        (["methods", "show"], ["takes one name"]),
        (["methods", "a", "b"], ["too many words"]),
        (["runs", "show", "v0001"], ["no run 'v0001'"]),
        (["runs", "compare", "v0001"], ["nothing to compare"]),
    ],
)
def test_a_mistake_gives_an_error_and_a_hint_and_exit_code_2(clipx, home, arguments, said):
    done = clipx(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.splitlines()[1].startswith("hint: ")
    assert "Traceback" not in done.err
    for text in said:
        assert text in done.err
    assert done.out == ""
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("arguments", [["pretrain"], ["pretrain", "-m", "seed=1,2"]])
def test_an_output_root_that_cannot_be_written_is_named(clipx, home, arguments):
    (home / "outputs").write_text("a file")
    done = clipx(*arguments)
    assert done.code == 2
    assert f"cannot write to {home / 'outputs'}" in done.err
    assert stub.seen == []


def test_another_process_of_a_launch_runs_the_recipe_and_is_silent(clipx, home, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    done = clipx("pretrain")
    assert done.code == 0
    assert "run " not in done.out
    assert stub.seen[0][1].directory is None
    assert list(home.iterdir()) == []


def test_methods_are_listed_and_shown(clipx):
    listed = clipx("methods").out
    assert "infonce" in listed
    assert "2021" in listed
    assert "zeroshot" not in clipx("methods", "pretrain").out
    shown = clipx("methods", "show", "infonce").out
    assert "Learning Transferable Visual Models" in shown
    assert "clipx pretrain --method infonce" in shown
    assert "clipx.objectives.infonce.InfoNCE" in shown
    described = json.loads(clipx("methods", "show", "pretrain/infonce", "--json").out)
    assert described["year"] == 2021
    both = json.loads(clipx("methods", "show", "infonce", "--json").out)
    assert {card["command"] for card in both} == {"pretrain", "finetune"}
    assert described["settings"]["objectives"]
    assert {"infonce", "siglip"} <= {card["name"] for card in json.loads(clipx("methods", "--json").out)}


def test_runs_are_listed_shown_and_compared(clipx, home):
    assert "no runs in" in clipx("runs").err
    clipx("pretrain", "seed=1")
    clipx("pretrain", "seed=13")
    clipx("zeroshot", "seed=2")
    rows = [line.split() for line in clipx("runs").out.splitlines()]
    assert rows[1][:5] == ["pretrain", "infonce", "v0001", "completed", "loss"]
    assert rows[2][:5] == ["pretrain", "infonce", "v0002", "failed", "-"]
    listed = json.loads(clipx("runs", "--json").out)
    assert [run["status"] for run in listed] == ["completed", "failed", "completed"]
    shown = clipx("runs", "show", "infonce/v0001").out
    assert "command    clipx pretrain seed=1" in shown
    assert "records    1, the last at step 1" in shown
    assert "top1    0.6 ± 0.01" in shown
    assert "seed: 1" in shown
    assert "bad luck" in clipx("runs", "show", "infonce/v0002").out
    assert json.loads(clipx("runs", "show", "infonce/v0001", "--json").out)["config"]["seed"] == 1
    compared = clipx("runs", "compare", "infonce/v0001", "infonce/v0002").out
    assert compared.splitlines()[1].split() == ["seed", "1", "13"]
    assert "loss" in compared
    side_by_side = json.loads(clipx("runs", "compare", "infonce/v0001", "infonce/v0002", "--json").out)
    assert side_by_side["config"] == {"seed": [1, 13]}
    assert side_by_side["metrics"]["top1"] == [0.6, None]
    clipx("pretrain", "seed=1")
    assert "configurations are the same" in clipx("runs", "compare", "infonce/v0001", "infonce/v0003").out
    assert "no runs in" in clipx("runs", "--output-root", "elsewhere").err
    assert clipx("runs", "--output-root", str(home / "outputs"), "show", "infonce/v0001").code == 0


def test_the_claimed_metric_stands_for_a_run():
    from clipx.commands.recipe import key_metric

    claim = {"card": {"claim": {"metric": "top1"}}}
    assert key_metric({"loss": 1.0, "top1": 0.5}, claim) == "top1"
    assert key_metric({"loss": 1.0}, claim) == "loss"
    assert key_metric({"text": "a", "ok": True}) is None


def test_a_contact_sheet_is_drawn(clipx, home):
    from PIL import Image

    done = clipx("scenes", "--grid", "sheet.png", "--count", "2", "data.image_size=32")
    assert done.code == 0, done.err
    assert Image.open(home / "sheet.png").size > (64, 32)
    assert json.loads(clipx("scenes", "--grid", "sheet.png", "--count", "2", "--json").out)["count"] == 2
    done = clipx("scenes", "--grid", "sheet.png/sheet.png", "--count", "2")
    assert done.code == 2
    assert "cannot write sheet.png/sheet.png" in done.err


def test_an_error_of_our_own_is_still_two_lines(clipx, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("clipx.commands.methods.listing", fail)
    done = clipx("methods")
    assert done.code == 1
    assert done.err == "error: RuntimeError: a bug\nhint: run again with --debug for the traceback\n"


def test_ctrl_c_outside_a_run_is_quiet(clipx, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("clipx.commands.methods.listing", stop)
    done = clipx("methods")
    assert done.code == 130
    assert done.err == ""


@pytest.mark.parametrize("arguments", [["runs"], ["methods"], ["--help"], ["pretrain", "--show-config"]])
def test_a_reader_that_has_seen_enough_is_no_error(home, arguments):
    Run.create(home / "outputs", "pretrain", "infonce", {"a": 1}).end("completed")
    reader, writer = os.pipe()
    os.close(reader)  # gone before the first line, which no timing can change
    command = [sys.executable, "-m", "clipx", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


def test_ctrl_c_and_kill_leave_a_right_status(home):
    """Real signals to a real process: Ctrl-C is answered, a kill is recognised afterwards."""
    (home / "site").mkdir()
    (home / "site" / "sitecustomize.py").write_text(
        "import sys, time, types\n"
        "module = types.ModuleType('pretrain')\n"
        "module.main = lambda config, run: (print('ready', flush=True), time.sleep(60))\n"
        "sys.modules['clipx.recipes.pretrain'] = module\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(home / "site")}
    for number, (sent, code, reason) in enumerate(
        [(signal.SIGINT, 130, "SIGINT"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGKILL, -9, "killed")], 1
    ):
        command = [sys.executable, "-m", "clipx", "pretrain"]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        path = home / "outputs" / "pretrain" / "infonce" / f"v{number:04d}"
        assert read_status(path)["status"] == "running"
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code
        assert "Traceback" not in errors
        status = read_status(path)
        assert status["status"] == "interrupted"
        assert reason in status["error"]

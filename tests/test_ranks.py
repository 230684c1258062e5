"""Several processes of one launch: one run, one voice, one end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_cli import clipx, home, stub

from clipx import ranks
from clipx.commands.recipe import Options, execute
from clipx.errors import ClipxError
from clipx.runs import read_metrics, read_status

__all__ = ["clipx", "home"]
HERE = Path(__file__).parent
SMALL = ["model=micro", "data.size=64", "data.validation_size=16", "data.test_size=16", "data.image_size=32"]
SMALL += ["training.batch_size=8", "training.log_every=1", "loader.workers=0", "training.steps=2000"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """What pairs of processes did that were told of each other as Slurm tells it, and what they printed."""
    folder = tmp_path_factory.mktemp("launches")
    command = [sys.executable, str(HERE / "launches.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for path in folder.glob("*-?.txt"):
        found[path.stem] = path.read_text()
    return found


def test_tasks_of_slurm_train_one_model_and_one_writes(tasks):
    assert tasks["whole"] == [0, 0]
    assert tasks["whole status"]["status"] == "completed"
    assert tasks["runs"] == ["v0001", "v0002", "v0003", "v0004", "v0005"]
    assert tasks["ranks"] == 2
    assert tasks["whole-0"].count("top1") >= 1
    assert tasks["whole-1"] == ""


def test_a_mistake_that_every_process_meets_is_told_once(tasks):
    assert tasks["mistake"] == [2, 2]
    both = tasks["mistake-0"] + tasks["mistake-1"]
    assert both.count("error: ") == both.count("does not exist") == both.count("hint: ") == 1


def test_a_process_that_loses_another_ends_and_names_no_traceback(tasks):
    assert tasks["lost"] == [1, -signal.SIGKILL]
    assert "error: another process of this launch has ended" in tasks["lost-0"]
    assert "--resume" in tasks["lost-0"]
    assert "Traceback" not in tasks["lost-0"]
    assert tasks["lost status"]["status"] == "failed"


def test_processes_stop_after_the_same_step_and_one_says_so(tasks):
    assert tasks["stopped"] == [143, 143]
    assert tasks["stopped status"]["status"] == "interrupted"
    assert tasks["checkpoint"] == tasks["last"] >= 12
    assert "going on from step" in tasks["stopped-0"]
    assert tasks["stopped-0"].count("error: stopped by SIGTERM") == 1
    assert tasks["stopped-1"] == ""


def test_all_processes_of_a_launch_learn_that_a_run_is_finished(tasks):
    assert tasks["again"] == [0, 0]
    assert "v0003 is finished" in tasks["again-0"]
    assert tasks["again-1"] == ""


def test_what_two_processes_began_one_goes_on_with(tasks):
    assert (tasks["two"], tasks["one"]) == ([0, 0], 0)
    assert "began with 2 processes and goes on with 1, of 16 pairs each" in tasks["one-0"]
    assert "going on from step 4" in tasks["one-0"]
    before, after = tasks["two losses"], tasks["one losses"]
    assert before.keys() == after.keys() == {str(step) for step in range(1, 7)}
    assert all(before[step] == after[step] for step in "1234")
    # The same 16 pairs in steps 5 and 6: another batch would differ in the second digit.
    assert all(abs(before[step] - after[step]) < 1e-4 for step in "56")


def test_a_process_that_waits_for_another_can_be_stopped(tasks):
    assert tasks["lonely"] == 143
    assert "error: stopped by SIGTERM" in tasks["lonely-0"]


@pytest.mark.slow
def test_a_launch_of_two_processes_ends_as_one_command(tmp_path):
    run = tmp_path / "pretrain" / "infonce" / "v0001"
    command = [sys.executable, "-m", "clipx", "pretrain", "--processes", "2", *SMALL]
    environment = {**os.environ, "CLIPX_OUTPUTS": str(tmp_path), "ACCELERATE_USE_CPU": "1"}
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while len(read_metrics(run)) < 3:
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ranks_at_work = psutil.Process(started.pid).children()
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=180)
    assert started.returncode == 143
    assert said.count("error: ") == said.count("stopped by SIGTERM") == 1
    assert f"clipx pretrain --resume {run.relative_to(tmp_path)} --processes 2" in said
    assert "Traceback" not in said
    assert read_status(run)["status"] == "interrupted"
    assert (run / "command.txt").read_text().startswith("clipx pretrain --processes 2 ")
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert len(ranks_at_work) == 2
    assert not any(process.is_running() for process in ranks_at_work)


# --- before anything starts ---


def options(**given):
    return Options(**{"command": "pretrain", "overrides": [], "argv": ["clipx", "pretrain"], **given})


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(ranks, "_devices", lambda: 4)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(
        ClipxError, match="--processes 8 asks for as many GPUs, and this machine has 4"
    ) as caught:
        ranks.start(["pretrain"], 8)
    assert "--processes 4" in caught.value.hint
    assert "ACCELERATE_USE_CPU" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"command": "zeroshot", "processes": 2}, "works in one process"),
        ({"processes": 2, "multirun": True}, "several processes work on one run"),
        ({"processes": 2, "overrides": ["optim.lrr=1"]}, "no key 'optim.lrr'"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_by_one(given, said, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "start", lambda *_, **__: pytest.fail("nothing is to start"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ClipxError, match=said):
        execute(options(output_root=str(tmp_path), **given))


def test_another_number_than_the_launcher_has_started(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ClipxError, match="--processes 4, but this is one of 2 processes already"):
        execute(options(processes=4))


def test_the_arguments_reach_accelerates_launcher(monkeypatch):
    from accelerate.commands import launch

    seen = []
    monkeypatch.setattr(launch, "launch_command", seen.append)
    monkeypatch.setattr(ranks, "_devices", lambda: 8)
    monkeypatch.setattr(ranks, "_configured", lambda: None)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert ranks.start(["pretrain", "--processes", "4", "seed=1"], 4) == 0
    (asked,) = seen
    assert (asked.num_processes, asked.num_machines, asked.multi_gpu, asked.module) == (4, 1, True, True)
    assert (asked.training_script, asked.training_script_args) == (
        "clipx",
        ["pretrain", "--processes", "4", "seed=1"],
    )
    assert "ACCELERATE_USE_CPU" not in os.environ
    monkeypatch.setattr(ranks, "_devices", lambda: 0)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")  # undone after the test
    ranks.start(["pretrain"], 4)
    assert os.environ["ACCELERATE_USE_CPU"] == "1"


@pytest.mark.parametrize(("kind", "decides"), [("FSDP", True), ("DEEPSPEED", True), ("MULTI_GPU", False)])
def test_a_configuration_of_accelerate_decides_how_processes_share(tmp_path, monkeypatch, kind, decides):
    from accelerate.commands import launch
    from accelerate.commands.config import config_args

    file = tmp_path / "default_config.yaml"
    file.write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 3\nuse_cpu: false\n"
        "fsdp_config: {fsdp_version: 2}\n"
    )
    monkeypatch.setattr(config_args, "default_config_file", str(file))
    monkeypatch.setattr(launch, "default_config_file", str(file))
    launchers = {}
    for name in ("multi_gpu_launcher", "deepspeed_launcher", "simple_launcher"):
        monkeypatch.setattr(launch, name, lambda asked, name=name: launchers.update({name: asked}))
    monkeypatch.setattr(ranks, "_devices", lambda: 8)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    ranks.start(["pretrain"], 4)
    ((name, asked),) = launchers.items()
    assert name == ("deepspeed_launcher" if kind == "DEEPSPEED" else "multi_gpu_launcher")
    assert asked.num_processes == 4
    assert (asked.use_fsdp or asked.use_deepspeed) == decides


def test_the_configuration_that_the_page_shows_spreads_parameters(tmp_path, monkeypatch):
    from accelerate.commands import launch

    page = (HERE.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    file = tmp_path / "fsdp.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    seen = []
    monkeypatch.setattr(launch, "multi_gpu_launcher", seen.append)
    launch.launch_command(
        launch.launch_command_parser().parse_args(["--config_file", str(file), "-m", "clipx", "pretrain"])
    )
    (asked,) = seen
    assert (asked.num_processes, asked.use_fsdp, asked.fsdp_version) == (8, True, 2)
    assert asked.fsdp_transformer_layer_cls_to_wrap == "ResidualAttentionBlock"


def test_a_process_that_does_not_write_keeps_its_own_account_of_a_sweep(clipx, home, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    done = clipx("pretrain", "-m", "seed=13,1")
    assert done.code == 1
    assert [config.seed for config, _ in stub.seen] == [13, 1]
    assert done.out == ""
    assert not list(home.glob("outputs/pretrain"))


PLACES = ("RANK", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION")


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("python /bin/accelerate launch --cpu --num_processes 3 -m clipx pretrain --processes 5", 3),
        ("python -m accelerate.commands.launch --num_processes=2 --cpu -m clipx pretrain", 2),
        ("python /bin/accelerate-launch --cpu --num_processes 4 train.py", 4),
        ("bash launch.sh", 1),
    ],
)
def test_processes_that_accelerate_was_asked_for_and_leaves_to_mpi(monkeypatch, words, number):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil.Process, "parent", lambda self: self)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: words.split())
    monkeypatch.setattr(ranks, "_end_with_launcher", lambda: None)
    monkeypatch.setattr(ranks, "_configured", lambda file: None)
    assert ranks.asked_of_accelerate() == 1  # nothing says that Accelerate has started this process
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert ranks.asked_of_accelerate() == number
    monkeypatch.setenv("RANK", "1")
    assert ranks.asked_of_accelerate() == 1


def test_accelerate_on_the_cpus_of_several_machines_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "_configured", lambda file: None)
    with pytest.raises(ClipxError, match="only through MPI") as caught:
        ranks._number_of(["--cpu", "--num_processes", "4", "--num_machines", "2", "-m", "clipx"])
    assert "torchrun" in caught.value.hint


def test_a_place_in_slurm_is_taken_before_torch_is_loaded():
    place = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    place |= {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}
    ranks.settle(place)
    assert (place["RANK"], place["WORLD_SIZE"], place["LOCAL_RANK"]) == ("1", "2", "1")
    assert int(place["OMP_NUM_THREADS"]) >= 1

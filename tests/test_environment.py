"""What surrounds a run is written down as it is."""

import subprocess

from clipx.environment import environment


def test_the_commit_of_the_working_directory_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment(1)["git"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run(["git", "add", "a"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "a"], check=True)
    state = environment(1)["git"]
    assert len(state["commit"]) == 40
    assert state["changed"] is False
    (tmp_path / "a").write_text("2")
    assert environment(1)["git"]["changed"] is True


def test_the_processes_that_work_together_are_recorded():
    assert environment(4)["processes"] == 4

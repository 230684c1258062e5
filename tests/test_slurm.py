import pytest

from clipx.errors import ClipxError
from clipx.slurm import first_host, tasks_per_node, variables

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_a_task_among_several_learns_its_place():
    assert variables(TASK) == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(12000 + 4711 + 202),
    }


def test_the_tasks_of_a_step_agree_where_to_meet_and_two_steps_meet_apart():
    places = {
        (variables({**TASK, "SLURM_PROCID": str(rank)})["MASTER_ADDR"], variables(TASK)["MASTER_PORT"])
        for rank in range(4, 7)
    }
    assert len(places) == 1
    assert variables({**TASK, "SLURM_STEP_ID": "3"})["MASTER_PORT"] != variables(TASK)["MASTER_PORT"]


def test_a_place_to_meet_that_is_given_stands():
    given = {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    assert variables({**TASK, **given}).items() >= given.items()


def test_on_one_node_no_name_has_to_be_resolved():
    one = {**TASK, "SLURM_STEP_TASKS_PER_NODE": "7", "SLURM_STEP_NODELIST": "gpu07", "SLURM_NODEID": "0"}
    assert variables(one)["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_STEP_ID": None},  # a batch script
        {"SLURM_PTY_PORT": "40000"},  # srun --pty bash
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun on every node
        {"LOCAL_RANK": "0"},
    ],
)
def test_a_process_that_srun_did_not_start_beside_others_is_alone(changed):
    environment = {name: value for name, value in {**TASK, **changed}.items() if value is not None}
    assert variables(environment) == {}


def test_outside_of_slurm_there_is_nothing():
    assert variables({"PATH": "/bin"}) == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID=x"),
        ({"SLURM_PROCID": "7"}, "task 7 of 7"),
        ({"SLURM_LOCALID": "3"}, "3 on its node"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4,4"}, r"\[4, 4\] on the nodes"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "'many'"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID is not set"),
    ],
)
def test_what_cannot_be_is_refused(changed, said):
    with pytest.raises(ClipxError, match=said) as caught:
        variables({**TASK, **changed})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("a1,a[2-3]", "a1"),
        ("rack[1-2]n[03,05]", "rack1n03"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_tasks_of_every_node():
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("8") == [8]

"""Cells: composed as a run of their own would be, named by what decides their result."""

import pytest
from omegaconf import OmegaConf

from clipx import config
from clipx.errors import ClipxError
from clipx.suites.cells import cells_of, digest_of, drafts_of, identity, in_order_of_work, with_methods
from clipx.suites.grid import Grid
from clipx.suites.suite import open_suite

GRID = Grid({"method": ("tip-adapter", "clip-adapter"), "shots": (1, 4), "seed": (1, 2)}, ("limit=50",))


@pytest.fixture(scope="module")
def cells():
    return cells_of(drafts_of(GRID, "adapt"))


def test_a_cell_is_what_the_command_composes(cells):
    assert len(cells) == 8
    for cell in (cells[0], cells[7]):
        overrides = [f"shots={cell.axes['shots']}", f"seed={cell.seed}", "limit=50"]
        alone = config.resolve(config.compose("adapt", overrides, method=cell.method))
        assert OmegaConf.to_container(alone) == cell.settings
    assert cells[7].settings["adapter"]["seed"] == 2  # interpolations see the cell's own values


def test_a_cell_says_how_to_make_it_alone(cells):
    cell = cells[5]
    assert cell.command_line == "clipx adapt --method clip-adapter limit=50 shots=1 seed=2"
    assert cell.label == "clip-adapter shots=1 seed=2"
    assert (cell.method, cell.axes, cell.seed) == ("clip-adapter", {"shots": 1}, 2)


def test_a_cell_is_named_by_what_decides_its_result(cells):
    assert len({cell.key for cell in cells}) == 8
    settings = cells[0].settings
    assert identity(settings) == cells[0].key
    assert identity({**settings, "card": {"claim": "another"}}) == cells[0].key
    assert identity({**settings, "limit": 51}) != cells[0].key
    assert identity(dict(reversed(settings.items()))) == cells[0].key
    # However it was asked for.
    typed = cells_of(drafts_of(Grid({}, ("shots=1", "seed=1", "limit=50")), "adapt"))
    assert [cell.key for cell in typed] == [cells[0].key]


def test_other_weights_that_ship_with_clipx_make_other_cells(cells, monkeypatch):
    drafts = drafts_of(GRID, "adapt")
    before = digest_of(drafts)
    monkeypatch.setattr("clipx.suites.cells._shipped", lambda name: "others" if name == "tiny" else None)
    assert identity(cells[0].settings) != cells[0].key
    assert digest_of(drafts) != before


def test_another_version_of_clipx_makes_other_cells(cells, monkeypatch):
    monkeypatch.setattr("clipx.suites.cells.__version__", "0.0.0")
    assert identity(cells[0].settings) != cells[0].key


def test_the_order_of_work_keeps_model_and_data_together():
    grid = Grid({"seed": (1, 2), "method": ("tip-adapter", "gda"), "data": ("scenes", "digits")})
    work = in_order_of_work(cells_of(drafts_of(grid, "adapt")))
    order = [(cell.axes["data"], cell.seed, cell.method) for cell in work]
    assert order == [
        (data, seed, method)
        for data in ("scenes", "digits")
        for seed in (1, 2)
        for method in ("tip-adapter", "gda")
    ]


def test_a_run_that_is_the_latest_today_is_meant_for_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "pretrain" / "infonce" / "v0001"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    grid = Grid({}, ("model=pretrain/infonce/latest",))
    cell = cells_of(drafts_of(grid, "zeroshot", root=tmp_path / "outputs"))[0]
    assert f"model={run}" in cell.argv


def test_all_methods_are_those_that_need_no_more_than_the_suite_has():
    everything = with_methods(Grid({"method": ("all",)}), "adapt", None, None).axes["method"]
    some = with_methods(Grid({"method": ("all",)}), "adapt", ["pre_projection"], None).axes["method"]
    assert "prolip" in some
    assert "tip-adapter" not in some
    assert set(some) < set(everything)
    named = with_methods(Grid({"method": ("tip-adapter", "gda")}), "adapt", ["pre_projection"], None)
    assert named.axes["method"] == ("tip-adapter", "gda")


WRONG = [
    (["shotz=4"], "no key 'shotz'", "did you mean shots"),
    (["shots=many"], "shots=many: expected a number", "default"),
    (["method=tip-adaptr"], "no method 'tip-adaptr' for adapt", "did you mean 'tip-adapter'"),
    (["data=sceens"], "no choice 'sceens' for data", "did you mean 'scenes'"),
    (["shots"], "'shots' is not an override", "key=value"),
    (["shots=[1,"], "cannot read the override", "key=value"),
    (["data=folder"], "must be given", "data.root"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), WRONG, ids=lambda value: str(value)[:20])
def test_what_is_wrong_with_any_cell_is_told(arguments, message, hint):
    with pytest.raises(ClipxError, match=message) as caught:
        cells_of(open_suite(["seed=1,2", *arguments]).drafts())
    assert hint in caught.value.hint


def test_the_digest_follows_everything_that_cells_are_composed_from(tmp_path):
    drafts = drafts_of(GRID, "adapt")
    assert digest_of(drafts) == digest_of(drafts_of(GRID, "adapt"))
    assert digest_of(drafts) != digest_of(drafts[:-1])
    (tmp_path / "method").mkdir()
    with_folder = digest_of(drafts, tmp_path)
    (tmp_path / "method" / "mine.yaml").write_text("card: {}")
    assert digest_of(drafts, tmp_path) != with_folder


def test_a_suite_comes_from_its_file_and_the_command_line():
    suite = open_suite(["suite=adapters", "shots=4,16", "metric=top5", "data=digits"], method="gda,zero-shot")
    assert suite.name == "adapters"
    assert suite.grid.axes == {"method": ("gda", "zero-shot"), "shots": (4, 16), "seed": (1, 2, 3)}
    assert suite.grid.fixed == ("data=digits",)
    assert (suite.metric, suite.baseline, suite.x) == ("top5", "zero-shot", "shots")


WRONG_SUITES = [
    (["suite=adaptors"], "no choice 'adaptors' for suite", "did you mean 'adapters'"),
    (["command=adopt"], "no command 'adopt'", "did you mean 'adapt'"),
    (["suite=adapters", "x=shot"], "x=shot is no axis", "did you mean 'shots'"),
    (["jobs=0"], "jobs=0: expected a number, 1 or more", "jobs=4"),
    (["jobs=many"], "jobs=many: expected a number", "jobs=4"),
    (["suite=adapters", "seed=[]"], "seed=", "VALUE"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), WRONG_SUITES, ids=lambda value: str(value)[:20])
def test_what_is_wrong_with_a_suite_is_told(arguments, message, hint):
    with pytest.raises(ClipxError, match=message) as caught:
        open_suite(arguments)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", config.choices("suite"))
def test_every_suite_names_cells_that_exist(name):
    # of the eleven data sets some have no place where they could be found by themselves
    suite = open_suite([f"suite={name}", *(["data.root=somewhere"] if name == "fewshot11" else [])])
    assert suite.title != name
    drafts = suite.drafts()
    assert cells_of([drafts[0], drafts[-1]])

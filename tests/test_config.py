"""Configuration: what composes, what is refused, and what is said about it."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from clipx import config
from clipx.errors import ClipxError
from clipx.run import Run


@pytest.fixture
def own(tmp_path):
    """A user's own conf directory with a card, a module and choices."""
    folder = tmp_path / "own"
    (folder / "method" / "pretrain").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "method" / "pretrain" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /model: RN50\n"
        "card: {title: Mine, year: 2026}\n"
        "objectives: {mine: {_target_: clipx_own_part.Part, weight: 2}}\n"
        "seed: 7\n"
    )
    (folder / "data" / "hole.yaml").write_text("root: ???\nshard: ${data.nowhere}\n")
    (folder / "clipx_own_part.py").write_text(
        "class Part:\n    def __init__(self, weight): self.weight = weight\n"
    )
    yield folder
    sys.modules.pop("clipx_own_part", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]


def refused(*overrides, command="pretrain", **kwargs) -> ClipxError:
    with pytest.raises(ClipxError) as caught:
        config.compose(command, overrides, **kwargs)
    return caught.value


def test_a_command_composes_with_its_default_method():
    composed = config.compose("pretrain", ["seed=5", "optim.lr=1e-4"])
    assert (composed.command, composed.method, composed.seed) == ("pretrain", "infonce", 5)
    assert composed.optim.lr == 1e-4
    assert composed.model.name == "tiny"
    assert "hydra" not in composed


@pytest.mark.parametrize("how", [{"method": "siglip"}, {"overrides": ["method=siglip"]}])
def test_a_method_is_chosen_and_the_users_overrides_win(how):
    composed = config.compose("pretrain", [*how.get("overrides", []), "seed=2"], method=how.get("method"))
    assert composed.method == "siglip"
    assert list(composed.objectives) == ["siglip"]
    assert composed.seed == 2


def test_two_methods_are_refused():
    assert "two methods" in refused("method=siglip", method="infonce").message


def test_the_users_own_cards_and_modules_join_in(own):
    composed = config.compose("pretrain", method="mine", config_dir=own)
    assert (composed.seed, composed.model.name) == (7, "RN50")
    assert config.compose("pretrain", ["seed=1"], method="mine", config_dir=own).seed == 1
    assert "hole" in config.choices("data", own)
    config.import_from(own)
    config.import_from(own)
    assert config.build(composed.objectives.mine).weight == 2
    assert sys.path.count(str(own)) == 1
    with pytest.raises(ClipxError, match="no such directory"):
        config.compose("pretrain", config_dir=own / "nowhere")


def test_every_architecture_is_a_model_and_open_clip_is_not_imported_for_it():
    names = config.architectures()
    assert len(names) > 100
    assert set(names) <= set(config.choices("model"))
    code = "import sys; from clipx import config; config.architectures(); print('open_clip' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50x16", "xlm-roberta-base-ViT-B-32", "coca_ViT-B-32"])
def test_a_model_may_be_any_architecture(name):
    composed = config.compose("pretrain", [f"model={name}", "model.pretrained=openai"])
    assert composed.model.name == name
    assert composed.model.pretrained == "openai"
    assert set(composed.model) == set(config.compose("pretrain").model)


@pytest.mark.parametrize("name", ["hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "local-dir:/some/where"])
def test_a_model_may_be_a_hub_name(name):
    assert config.compose("pretrain", [f"model={name}"]).model.name == name


def test_a_model_may_be_a_directory_or_a_file(tmp_path, monkeypatch):
    (tmp_path / "my models, old").mkdir()
    (tmp_path / "weights.pt").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("my models, old", "weights.pt", str(tmp_path)):
        assert config.compose("pretrain", [f"model={name}"]).model.name == str(tmp_path / name)


def test_a_model_may_be_a_run(tmp_path):
    runs = [Run.create(tmp_path, "pretrain", "infonce", {"command": "pretrain"}) for _ in range(2)]
    runs[0].path("model")
    for name in (
        "pretrain/infonce/v0001",
        "infonce/latest",
        "latest",
        "pretrain/infonce",
        str(runs[0].directory),
    ):
        composed = config.compose("pretrain", [f"model={name}"], root=tmp_path)
        assert composed.model.name == str(runs[0].directory), name
    assert "no run 'v0002' with a model/" in refused("model=v0002", root=tmp_path).message
    assert "no such file" in refused("model=pretrain/siglip", root=tmp_path).message
    assert "no such file" in refused("model=./nowhere").message


@pytest.mark.parametrize("value", ["tiny,ViT-B-32,hf-hub:a/b", "choice(micro,RN50)"])
def test_several_models_are_kept_apart_for_a_sweep(value):
    (prepared,) = config.prepare("pretrain", [f"model={value}"])
    assert prepared.startswith("model=")
    assert prepared.count(",") == value.count(",")


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("method=infonc", "no method 'infonc' for pretrain", "did you mean 'infonce'"),
        (
            "method=zero-shot",
            "no method 'zero-shot' for pretrain",
            "clipx zeroshot --method zero-shot",
        ),
        ("data=foldr", "no choice 'foldr' for data", "did you mean 'folder'"),
        ("model=ViT-B-33", "no choice 'ViT-B-33' for model", "'ViT-B-32'"),
        ("hydra/launcher=slurm", "no hydra/launcher 'slurm'", "clipx[sweep]"),
        ("optim.lrr=1", "no key 'optim.lrr'", "did you mean optim.lr?"),
        ("lr=1", "no key 'lr'", "did you mean optim.lr"),
        ("modle=tiny", "no key 'modle'", "did you mean model?"),
        ("training.stepz=1", "no key 'training.stepz'", "training.steps"),
        ("~optim.nothing", "no key 'optim.nothing'", "optim.lr"),
        ("+seed=1", "seed exists already", "seed=..."),
        ("seed=1,2", "seed=1,2 has several values", "--multirun"),
        ("method=infonce,siglip", "--method infonce,siglip has several values", "--multirun"),
        ("optimm@_global_=adamw", "no group 'optimm'", "did you mean 'optim'"),
        ("siglip", "'siglip' is not an override", "did you mean --method siglip"),
        ("nonsense", "'nonsense' is not an override", "key=value"),
        ("x=[", "cannot read the override 'x=['", "key=value"),
        ("seed=abc", "seed=abc: expected a number", "seed=0"),
        ("seed=true", "seed=True: expected a number", "seed=0"),
        ("training.compile=maybe", "expected true or false", "training.compile=False"),
        ("augment.scale=1", "expected a list", "0.9"),
        ("optim.lr='fast'", "expected a number", "0.002"),
        ("training=1", "expected a group of keys", "training.steps"),
        ("hydra.job.chdir=maybe", "hydra.job.chdir=maybe does not fit", "maybe"),
        ("hydra.sweep.dri=x", "no key 'hydra.sweep.dri'", "valid:"),
        ("training.deep.deeper=1", "no key 'training.deep.deeper'", "training.steps"),
    ],
)
def test_mistakes_are_named_with_what_would_be_right(override, message, hint):
    error = refused(override)
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    "override", ["seed=null", "training.steps=10", "+new.key=1", "++seed=text", "optim.lr=${seed}"]
)
def test_values_that_fit_are_taken(override):
    config.compose("pretrain", [override])


def test_one_number_may_stand_for_a_list_of_them(own):
    (own / "data" / "listed.yaml").write_text(
        "seeds: [1, 2]\nnames: [a]\nalias: ${data.seeds}\ndead: ${nothing}\n"
    )
    choice = "data=listed"
    assert config.compose("pretrain", [choice, "data.seeds=3", "data.dead=1"], config_dir=own).data.seeds == 3
    for override in ("data.names=b", "data.seeds=x", "data.alias=true"):
        assert "expected a list" in refused(choice, override, config_dir=own).message


def test_a_command_without_a_configuration_is_named():
    assert "'nowhere'" in refused(command="nowhere").message


def test_what_hydra_says_is_passed_on_in_one_line(own):
    (own / "method" / "pretrain" / "odd.yaml").write_text("defaults:\n  - override /nothing: x\n")
    error = refused(method="odd", config_dir=own)
    assert "nothing" in error.message
    assert "\n" not in error.message


def test_a_missing_value_and_a_dead_reference_are_named_when_resolved(own):
    composed = config.compose("pretrain", ["data=hole"], config_dir=own)
    with pytest.raises(ClipxError, match=r"data\.root must be given") as caught:
        config.resolve(composed)
    assert "data.root=..." in caught.value.hint
    composed = config.compose("pretrain", ["data=hole", "data.root=x"], config_dir=own)
    with pytest.raises(ClipxError, match=r"data\.shard refers to a key that does not exist"):
        config.resolve(composed)


def test_a_resolved_configuration_is_plain_and_closed():
    composed = config.compose("pretrain", ["optim.lr=${seed}", "seed=3"])
    resolved = config.resolve(composed)
    assert OmegaConf.to_container(resolved)["optim"]["lr"] == 3
    with pytest.raises(Exception, match="nothing"):
        _ = resolved.nothing


def test_a_card_that_is_not_yaml_is_named(own):
    (own / "method" / "pretrain" / "bad.yaml").write_text("card: [a, b\nx: 1\n")
    error = refused(method="bad", config_dir=own)
    assert "bad.yaml" in error.message


def test_composing_leaves_an_outer_hydra_alone():
    from hydra.core.global_hydra import GlobalHydra

    marker = object()
    GlobalHydra.instance().hydra = marker
    try:
        config.compose("pretrain")
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().hydra = None


def test_differences_are_by_key():
    first = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    second = OmegaConf.create({"a": {"b": 2, "c": [1, 2]}, "e": {}})
    assert config.differences(first, second) == {"a.b": [1, 2], "d": [None, None], "e": [None, {}]}
    assert config.differences(first, first) == {}


def test_parts_are_built_with_plain_arguments():
    part = config.build(OmegaConf.create({"_target_": "collections.OrderedDict", "a": [1, {"b": 2}]}), c=3)
    assert isinstance(part, OrderedDict)
    assert type(part["a"]) is list
    assert type(part["a"][1]) is dict
    assert part["c"] == 3
    assert config.build({"_target_": "collections.Counter"}, "aab")["a"] == 2


@pytest.mark.parametrize(
    ("node", "extra", "message", "hint"),
    [
        (None, {}, "no _target_", "package.module.Class"),
        ({"a": 1}, {}, "no _target_", "package.module.Class"),
        ({"_target_": "clipx_nowhere.Thing"}, {}, "clipx_nowhere.Thing cannot be imported", "--config-dir"),
        ({"_target_": "pathlib.Pat"}, {}, "pathlib.Pat cannot be imported", "did you mean 'Path'"),
        ({"_target_": "nothing"}, {}, "nothing cannot be imported", "package.module"),
        (
            {"_target_": "shutil.copyfile", "sorce": 1},
            {},
            "shutil.copyfile has no argument 'sorce'",
            "did you mean",
        ),
        (
            {"_target_": "shutil.copyfile", "src": 1},
            {},
            "shutil.copyfile: missing",
            "its arguments: src, dst",
        ),
        ({"_target_": "shutil.copyfile"}, {"dest": 1}, "no argument 'dest'", "'dst'"),
        (
            {"a": {"_target_": "pathlib.Pat"}, "_target_": "collections.OrderedDict"},
            {},
            "pathlib.Pat",
            "'Path'",
        ),
    ],
)
def test_a_bad_target_or_argument_is_named(node, extra, message, hint):
    with pytest.raises(ClipxError) as caught:
        config.build(node, **extra)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_positional_arguments_count_when_arguments_are_checked():
    with pytest.raises(ClipxError, match=r"torch\.optim\.SGD has no argument 'lrr'") as caught:
        config.build({"_target_": "torch.optim.SGD", "lrr": 1}, [])
    assert "did you mean 'lr'" in caught.value.hint
    with pytest.raises(TypeError):  # the constructor's own complaint
        config.build({"_target_": "fractions.Fraction"}, object())


def test_a_part_that_fails_for_its_own_reasons_says_so_itself():
    with pytest.raises(FileNotFoundError):
        config.build({"_target_": "shutil.copyfile", "src": "/nowhere/a", "dst": "/nowhere/b"})
    with pytest.raises(ClipxError, match="no such directory"):
        config.build({"_target_": "clipx.config.conf_dirs", "config_dir": "/nowhere"})


def test_the_conf_directory_is_the_checkouts():
    assert config.conf_dir() == Path(config.__file__).parents[1] / "conf"
    assert {"data", "model", "optim"} <= set(config.groups())


@pytest.mark.parametrize(
    "value", ["shards/{0000..0099}.tar", "shards/[0-7].tar", "pipe:cat shards/{0..9}.tar", "my photos/a.csv"]
)
def test_a_pattern_needs_no_quotes_within_quotes(value):
    composed = config.compose("pretrain", ["data=webdataset", f"data.urls={value}"])
    assert composed.data.urls == value


def test_lists_and_sweeps_are_left_to_hydra():
    assert config.prepare("pretrain", ["a=[1,2]", "seed=1,2", "b={c: 1}"]) == [
        "a=[1,2]",
        "seed=1,2",
        "b={c: 1}",
    ]


def test_epochs_that_are_asked_for_win_over_the_steps_of_a_card():
    card = config.compose("pretrain", [], method="declip").training
    assert (card.steps, card.epochs) == (300, None)
    asked = config.compose("pretrain", ["training.epochs=2"], method="declip").training
    assert (asked.steps, asked.epochs) == (None, 2)
    both = config.compose("pretrain", ["training.epochs=2", "training.steps=7"], method="declip").training
    assert (both.steps, both.epochs) == (7, 2)

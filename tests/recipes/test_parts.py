import pytest
from omegaconf import OmegaConf

from clipx.errors import ClipxError
from clipx.recipes.parts import build_objectives


def node(**options):
    return OmegaConf.create(
        {"pull": {"_target_": "clipx.objectives.alignment.Alignment", "form": "cosine", **options}}
    )


def test_objectives_are_built_with_their_weights():
    objectives, weights = build_objectives(node(weight=0.1))
    assert objectives["pull"].form == "cosine"
    assert weights == {"pull": 0.1}
    assert build_objectives(node())[1] == {"pull": 1.0}


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "much", None])
def test_a_weight_that_is_none(weight):
    with pytest.raises(ClipxError, match=r"objectives.pull.weight=.* must be a number, 0 or more"):
        build_objectives(node(weight=weight))

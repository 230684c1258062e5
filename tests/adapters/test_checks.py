from pathlib import Path

import pytest
import torch
from bench import LABELS, SHOTS, TEXT, drawn
from hydra.utils import get_object
from omegaconf import OmegaConf

from clipx.adapters.checks import checked
from clipx.adapters.protocol import fit
from clipx.adapters.zero_shot import ZeroShot
from clipx.errors import ClipxError
from clipx.features.projection import Projection

NAN = SHOTS.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(float("nan")).double())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": SHOTS * torch.tensor([[1], [1.1], [1], [1]])}, "features: row 1 has length 1.1"),
        ({"features": NAN}, "row 2 holds NaN or infinity"),
        ({"features": (SHOTS * 1e6).half()}, "row 0 holds NaN or infinity"),
        ({"features": SHOTS[:, :2]}, "2 dimensions, the classifier 3"),
        ({"features": SHOTS[0]}, "must be a matrix of floats"),
        ({"features": SHOTS[:0], "labels": LABELS[:0]}, "no shot"),
        ({"labels": torch.tensor([0, 0, 1, 2])}, "label 2 of row 3 is outside the 2 classes"),
        ({"labels": torch.tensor([0, -1, 1, 1])}, "label -1 of row 1"),
        ({"labels": LABELS.double()}, "vector of integers"),
        ({"labels": LABELS[:3]}, "4 rows of features have 3 labels"),
        ({"text_classifier": TEXT[:1]}, "has 1 class"),
        ({"text_classifier": TEXT * 2}, "text_classifier: row 0 has length 2"),
        ({"logit_scale": 0.0}, "logit_scale is 0"),
        ({"logit_scale": float("nan")}, "logit_scale is nan"),
        ({"validation": (SHOTS * 2, LABELS)}, "validation features: row 0 has length 2"),
        ({"validation": (SHOTS, LABELS + 1)}, "label 2 of row 2"),
        ({"groups": torch.tensor([0, 1, 1, 2])}, "row 2 has another label than a view"),
        ({"groups": torch.tensor([0, 1])}, "must be 4 integers"),
    ],
)
def test_bad_input_is_named(given, message):
    usual = {"features": SHOTS, "labels": LABELS, "text_classifier": TEXT, "logit_scale": 100.0}
    with pytest.raises(ClipxError, match=message):
        checked(**{**usual, **given})


CARDS = Path(__file__).parents[2] / "conf" / "method" / "adapt"


def bare(card):
    """The adapter of a card, built with nothing but its class's own defaults."""
    return get_object(OmegaConf.load(card).adapter._target_)()


@pytest.mark.parametrize("fault", ["nan", "overflow", "length", "label", "one class"])
@pytest.mark.parametrize("card", sorted(CARDS.glob("*.yaml")), ids=lambda card: card.stem)
def test_every_card_refuses_it(card, fault):
    adapter = bare(card)
    if adapter.needs in ("text_tower", "images"):
        pytest.skip("fitted with a CLIP: test_prompt_learning and test_tower_training")
    features, labels, text, _ = drawn(dims=12)
    extras = {}
    if adapter.needs == "pre_projection":
        features, extras = features * 3, {"projection": Projection(torch.eye(12), None)}
    if fault == "length" and adapter.needs == "pre_projection":
        pytest.skip("rows before the projection have any length")
    if fault == "nan":
        features[3, 1], message = float("nan"), "row 3 holds NaN"
    elif fault == "overflow":
        features, message = (features * 1e6).half(), "row 0 holds NaN or infinity"
    elif fault == "length":
        features, message = features * 2, "row 0 has length 2"
    elif fault == "label":
        labels, message = labels + 1, "label 5 of row 16 is outside the 5 classes"
    else:
        text, message = text[:1], "has 1 class: there is nothing to tell apart"
    with pytest.raises(ClipxError, match=message):
        fit(adapter, features, labels, text, logit_scale=100, **extras)


def test_half_precision_is_worked_in_float32():
    support = checked(SHOTS.half(), LABELS.int(), TEXT.bfloat16(), logit_scale=100)
    assert support.features.dtype == support.text_classifier.dtype == torch.float32
    assert support.labels.dtype == torch.int64


def test_groups_are_counted_from_zero():
    support = checked(SHOTS, LABELS, TEXT, logit_scale=100, groups=torch.tensor([8, 8, 2, 5]))
    assert support.groups.tolist() == [2, 2, 0, 1]


def test_an_empty_validation_is_none():
    assert checked(SHOTS, LABELS, TEXT, logit_scale=1, validation=(SHOTS[:0], LABELS[:0])).validation is None


def test_queries_are_checked():
    features, labels, text, queries = drawn()
    adapter = ZeroShot()
    with pytest.raises(ClipxError, match="not fitted"):
        adapter.logits(queries)
    adapter.fit(features, labels, text, logit_scale=100)
    assert adapter.logits(queries[:0]).shape == (0, 5)
    assert adapter.logits(queries.float()).dtype == torch.float64
    for wrong, message in ((queries[:, 1:], "11 dimensions"), (queries * 2, "row 0 has length 2")):
        with pytest.raises(ClipxError, match=message):
            adapter.logits(wrong)

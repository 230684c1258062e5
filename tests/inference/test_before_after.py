import copy

import numpy as np
import pytest
import torch
from torch import nn

from clipx.inference.before_after import BeforeAfter, Head, class_scores, measured
from clipx.inference.evaluation import Evaluation
from clipx.inference.weight_curve import ensemble_top1, put, state_of, weight_curve


class Tints:
    """Noise, labelled without a reason; counts how often it is read."""

    classes, templates = ["ant", "bee", "cow"], None

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 12

    def examples(self, indices):
        self.reads += len(indices)
        return [self.example(int(index)) for index in indices]

    def example(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return {"image": pixels, "captions": [f"number {index}"], "label": index % 3, "id": str(index)}


@pytest.fixture
def other(micro):
    torch.manual_seed(5)
    clip = copy.deepcopy(micro)
    for parameter in clip.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return clip


def head(classes=("ant", "bee", "cow"), answer=1):
    layer = nn.Linear(32, len(classes))
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.eye(len(classes))[answer]
    return Head(layer, list(classes))


def test_differences_are_those_of_the_figures(micro, other):
    both = BeforeAfter(Evaluation(Tints()), micro)
    found = both.beside(both.measure(other))
    assert found["before_top1"] == measured(Evaluation(Tints()), micro).estimates["top1"]
    gain = found["top1"].value - found["before_top1"].value
    assert found["difference"].value == pytest.approx(gain)
    assert "before_text_to_image_recall@1" in found


def test_a_head_answers_for_its_own_classes_only(micro):
    evaluation = Evaluation(Tints())
    plain, found = measured(evaluation, micro), measured(evaluation, micro, head())
    assert found.estimates["top1"].value == pytest.approx(1 / 3)
    assert set(found.seen.predictions) == {1}
    assert found.estimates["zero_shot_top1"] == plain.estimates["top1"]
    stranger = measured(evaluation, micro, head(("x", "y")))
    assert stranger.estimates == plain.estimates
    logits, labels = class_scores(evaluation, micro, head())
    assert logits.tolist() == [[0, 1, 0]] * 12
    assert labels.tolist() == [0, 1, 2] * 4
    torch.testing.assert_close(
        class_scores(evaluation, micro)[0], class_scores(evaluation, micro, head(("x", "y")))[0]
    )


def test_images_are_remembered_where_they_have_room(micro):
    for room, reads in ((0, 24), (12 * 3 * 32 * 32, 12), (12 * 3 * 32 * 32 - 1, 24)):
        evaluation = Evaluation(Tints(), remember=room)
        first = evaluation(micro)
        assert evaluation(micro) == first
        assert evaluation.source.reads == reads
    coarse = copy.copy(micro)
    coarse.preprocess_cfg = {**micro.preprocess_cfg, "interpolation": "bilinear"}
    evaluation = Evaluation(Tints(), remember=1 << 20)
    evaluation(micro)
    evaluation(coarse)
    assert evaluation.source.reads == 24


def test_the_curve_runs_from_one_model_to_the_other(micro, other):
    evaluations = {"": Evaluation(Tints())}
    own, classifier = copy.deepcopy(micro), head()
    ends = state_of(micro, head(answer=0)), state_of(other, head(answer=2))
    points = weight_curve(own, classifier, ends, [0, 0.4, 1], evaluations)
    assert [point.alpha for point in points] == [0, 0.4, 1]
    assert [set(point.measured[""].seen.predictions) for point in points] == [{0}, {0}, {2}]
    assert all(torch.equal(value, state_of(own, classifier)[name]) for name, value in ends[1].items())
    for place, model in ((0, micro), (2, other)):
        expected = measured(evaluations[""], model).estimates["top1"]
        assert points[place].measured[""].estimates["zero_shot_top1"] == expected


def test_the_ensemble_adds_logits(micro, other):
    evaluation = Evaluation(Tints())
    ends = state_of(micro), state_of(other)
    scores = [class_scores(evaluation, model)[0] for model in (micro, other)]
    own = copy.deepcopy(micro)
    for alpha in (0.0, 0.3, 1.0):
        mixed = (1 - alpha) * scores[0] + alpha * scores[1]
        right = (mixed.argmax(1) == torch.arange(12) % 3).float().mean()
        assert ensemble_top1(own, None, ends, alpha, evaluation).value == pytest.approx(float(right))


def test_weights_are_copied_and_put_back(micro, other):
    kept = state_of(micro)
    own = copy.deepcopy(other)
    put(kept, own)
    assert all(torch.equal(value, micro.state_dict()[name]) for name, value in own.state_dict().items())
    assert all(name.startswith("clip.") for name in kept)

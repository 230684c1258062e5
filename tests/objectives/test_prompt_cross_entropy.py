import math

import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.prompt_cross_entropy import PromptCrossEntropy, prompt_cross_entropy
from clipx.training.encoded import Encoded


def drawn(start, *shape):
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + start).view(shape)


IMAGE, TEXT = (functional.normalize(drawn(start, 3, 4), dim=-1) for start in (0, 1))
LABELS = torch.tensor([0, 2, 0])


def test_the_softmax_is_over_classes_whoever_is_in_the_batch():
    expected = 0.0
    for image, label in zip(IMAGE, LABELS, strict=True):
        scores = [10 * float(image @ text) for text in TEXT]
        expected += (math.log(sum(math.exp(each) for each in scores)) - scores[label]) / 3
    assert float(prompt_cross_entropy(IMAGE, TEXT, LABELS, 10.0)) == pytest.approx(expected, abs=1e-12)
    halves = [float(prompt_cross_entropy(IMAGE[:1], TEXT, LABELS[:1], 10.0))]
    halves += [float(prompt_cross_entropy(IMAGE[1:], TEXT, LABELS[1:], 10.0))] * 2
    assert sum(halves) / 3 == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def prompts(micro):
    texts = [f"{start} {name}" for name in ("red", "green", "blue") for start in ("a photo of", "my", "the")]
    return micro.tokenize(texts).unflatten(0, (3, 3))


@pytest.fixture
def batch():
    return {
        "image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8),
        "label": torch.tensor([0, 1, 2, 0]),
    }


def losses(micro, prompts, batch, templates, seeds):
    objective = PromptCrossEntropy(prompts, templates)
    for seed in seeds:
        torch.manual_seed(seed)
        yield float(objective(Encoded(micro, batch))["prompt_cross_entropy"].detach())


def test_each_class_draws_a_prompt_of_its_own_every_step(micro, prompts, batch):
    image = Encoded(micro, batch).image()
    rows = micro.encode_text(prompts.flatten(0, 1)).unflatten(0, (3, 3))
    possible = [
        float(prompt_cross_entropy(image, torch.stack(chosen), batch["label"], micro.logit_scale).detach())
        for chosen in ((one, two, three) for one in rows[0] for two in rows[1] for three in rows[2])
    ]
    found = list(losses(micro, prompts, batch, "random", range(40)))
    nearest = [min(range(27), key=lambda place: abs(possible[place] - loss)) for loss in found]
    assert all(abs(possible[place] - loss) < 1e-5 for place, loss in zip(nearest, found, strict=True))
    # One draw for all classes would give 3 of the 27.
    assert len(set(nearest)) > 10


def test_averaged_prompts_are_the_zero_shot_classifier(micro, prompts, batch):
    rows = micro.encode_text(prompts.flatten(0, 1)).unflatten(0, (3, 3))
    text = functional.normalize(rows.mean(1), dim=-1)
    image = Encoded(micro, batch).image()
    expected = float(prompt_cross_entropy(image, text, batch["label"], micro.logit_scale).detach())
    assert list(losses(micro, prompts, batch, "average", [0, 1])) == pytest.approx([expected] * 2, abs=1e-5)


@pytest.mark.parametrize("templates", ["random", "average"])
def test_the_text_tower_learns(micro, prompts, batch, templates):
    PromptCrossEntropy(prompts, templates)(Encoded(micro, batch))["prompt_cross_entropy"].backward()
    model = micro.model
    for parameter in (model.token_embedding.weight, model.text_projection, model.visual.proj):
        assert parameter.grad.abs().sum() > 0
    micro.zero_grad()


def test_unknown_templates(prompts):
    with pytest.raises(ClipxError, match="templates='mean'"):
        PromptCrossEntropy(prompts, "mean")

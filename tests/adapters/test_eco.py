import pytest
import torch
from prompted import NAMES, SCALE, clip, fitted, task, zero_shot
from torch.nn import functional

from clipx.adapters.coop import CoOp
from clipx.adapters.eco import ECO, ensemble
from clipx.adapters.saving import load, save
from clipx.errors import ClipxError
from clipx.models.prompting import PromptContext

pytestmark = pytest.mark.filterwarnings("ignore:trained for")


def test_the_case_of_the_sheet():
    image = torch.tensor([0.8, 0.6, 0], dtype=torch.float64)
    rows = [[[1, 0, 0], [0, 1, 0]], [[0.6, 0.8, 0], [0, 0.6, 0.8]]]
    prompts = torch.tensor(rows, dtype=torch.float64)
    classifier = ensemble(prompts)
    expected = [[0.894427, 0.447214, 0], [0, 0.894427, 0.447214]]
    assert classifier.tolist() == [pytest.approx(row, abs=5e-7) for row in expected]
    assert (100 * classifier @ image).tolist() == pytest.approx([98.386991, 53.665631], abs=5e-7)
    assert (100 * prompts.mean(0) @ image).tolist() == pytest.approx([88.0, 48.0])  # another method


def test_long_features_weigh_more_in_the_raw_average():
    prompts = torch.tensor([[[3.0, 0]], [[0, 4.0]]]).double()
    assert ensemble(prompts, "raw")[0].tolist() == pytest.approx([0.6, 0.8])
    assert ensemble(prompts)[0].tolist() == pytest.approx([0.5**0.5] * 2)


def test_one_prompt_is_coop_step_by_step():
    *_, queries, _ = task()
    given = {"n_ctx": 4, "epochs": 3, "batch_size": 8, "seed": 4}
    eco, coop = fitted(ECO(prompts=1, **given)), fitted(CoOp(**given))
    torch.testing.assert_close(eco.context_, coop.context_, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(eco.logits(queries), coop.logits(queries), rtol=1e-10, atol=1e-10)


def test_the_order_of_the_prompts_does_not_matter():
    *_, queries, _ = task()
    adapter = fitted(ECO(prompts=3, n_ctx=2, epochs=2, batch_size=8))
    expected = adapter.logits(queries)
    adapter.context_ = adapter.context_[[2, 0, 1]]
    adapter.attach(clip())
    torch.testing.assert_close(adapter.logits(queries), expected, rtol=1e-10, atol=1e-10)


def test_prompts_start_and_stay_apart():
    start, end = (fitted(ECO(prompts=3, n_ctx=2, epochs=epochs, batch_size=8)).context_ for epochs in (0, 3))
    for context in (start, end):
        assert torch.pdist(context.flatten(1)).min() > 0.01
    assert not torch.equal(start, end)


@pytest.mark.parametrize("average", ["unit", "raw"])
def test_the_classifier_that_is_kept_is_the_one_that_was_trained(average):
    *_, queries, _ = task()
    adapter = fitted(ECO(prompts=2, n_ctx=3, average=average, epochs=2, batch_size=8))
    features = torch.stack([PromptContext(clip(), NAMES, one[None])()[0] for one in adapter.context_])
    features = functional.normalize(features, dim=-1) if average == "unit" else features
    expected = functional.normalize(features.mean(0), dim=-1).detach()
    torch.testing.assert_close(adapter.text_classifier(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(adapter.logits(queries), SCALE * queries @ expected.T, rtol=0, atol=1e-6)


def test_prompts_of_different_lengths(tmp_path):
    *_, queries, _ = task()
    adapter = fitted(ECO(prompts=3, n_ctx=[4, 2, 2], epochs=2, batch_size=8))
    assert adapter.lengths_ == [2, 2, 4]
    assert adapter.context_.shape == (3, 1, 4, 96)
    assert adapter.context_[:2, :, 2:].abs().max() == 0
    features = [
        PromptContext(clip(), NAMES, one[None, :, :length])()[0]
        for one, length in zip(adapter.context_, adapter.lengths_, strict=True)
    ]
    expected = ensemble(torch.stack(features)).detach()
    torch.testing.assert_close(adapter.text_classifier(), expected, rtol=0, atol=1e-10)
    save(adapter, tmp_path / "a")
    again = load(tmp_path / "a")
    again.attach(clip())
    assert torch.equal(again.logits(queries), adapter.logits(queries))
    names = ["red star", "violet"]
    assert adapter.for_classes(zero_shot(names), class_names=names).logits(queries).shape == (len(queries), 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": 0}, "prompts is 0"),
        ({"prompts": 2, "n_ctx": [4, 4, 4]}, "n_ctx lists 3 lengths for 2 prompts"),
        ({"prompts": 2, "n_ctx": [4, 0]}, "n_ctx is 0"),
        ({"average": "logits"}, "unknown average 'logits'"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(ClipxError, match=message):
        ECO(**given)

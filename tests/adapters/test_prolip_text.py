import pytest
import torch
from prompted import NAMES, SCALE, accuracy, clip, fitted, task, zero_shot
from torch import nn
from torch.nn import functional

from clipx.adapters.prolip_text import ProLIPText, class_rows
from clipx.adapters.protocol import Adapter, RunsText, Transferable
from clipx.adapters.saving import load, save
from clipx.errors import ClipxError
from clipx.features.projection import text_projection, texts_before_projection

TEMPLATES = ["a photo of a {}.", "a drawing of a {}."]
PROMPTS = [template.replace("{}", name) for name in NAMES for template in TEMPLATES]


def trained(templates=TEMPLATES, **settings):
    given = {"steps": 20, "lr": 1e-3, **settings}
    return fitted(ProLIPText(**given), templates=templates)


def test_rows_before_the_projection_are_what_the_tower_projects():
    weight, bias = text_projection(clip())
    with torch.no_grad():
        expected = clip().model.encode_text(clip().tokenize(PROMPTS))
    rows = texts_before_projection(clip(), PROMPTS, batch_size=5)
    assert bias is None
    torch.testing.assert_close(rows @ weight, expected)
    with torch.no_grad():
        assert torch.equal(clip().model.encode_text(clip().tokenize(PROMPTS)), expected)


def test_no_step_is_zero_shot():
    *_, queries, _ = task()
    adapter = trained(TEMPLATES[:1], steps=0)
    torch.testing.assert_close(adapter.logits(queries), SCALE * queries @ zero_shot(NAMES).T)
    assert adapter.moved_ == 0


def test_prompts_of_a_class_are_averaged_as_unit_rows():
    prompts = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]).double()
    found = class_rows(prompts, torch.eye(2).double())
    assert found[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    moved = class_rows(prompts, torch.eye(2).double(), torch.tensor([0.0, 1.0]).double())
    expected = functional.normalize(torch.tensor([3 / 10**0.5, 1 / 10**0.5 + 1]), dim=0)
    assert moved[0].tolist() == pytest.approx(expected.tolist())


def test_training_is_the_published_loop():
    features, labels, *_ = task()
    before = text_projection(clip()).weight.clone()
    adapter = trained(steps=3, lr=0.01)
    prompts = texts_before_projection(clip(), PROMPTS).unflatten(0, (len(NAMES), 2))
    weight = before.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.01, eps=1e-4)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.005 * (1 + torch.cos(torch.tensor(torch.pi * step / 3)).item())
        text = functional.normalize(prompts @ weight, dim=-1).mean(1)
        text = text / text.norm(dim=1, keepdim=True)
        loss = functional.cross_entropy(SCALE * features @ text.T, labels)
        loss = loss + 0.5 * ((weight - before) ** 2).sum()  # 1/K of two shots
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(adapter.projection_, weight.detach(), atol=1e-6, rtol=1e-5)
    assert adapter.lam_ == 0.5
    assert torch.equal(text_projection(clip()).weight, before)


def test_it_learns_and_is_saved_and_read(tmp_path):
    *_, queries, truth = task()
    adapter = trained(steps=60, lr=1e-3)
    assert accuracy(adapter.logits(queries), truth) > accuracy(queries @ zero_shot(NAMES).T, truth)
    assert all(isinstance(adapter, kind) for kind in (Adapter, RunsText, Transferable))
    save(adapter, tmp_path / "a")
    again = load(tmp_path / "a")
    assert torch.equal(again.logits(queries), adapter.logits(queries))
    other = {"class_names": NAMES[1:3], "templates": TEMPLATES}
    text = zero_shot(NAMES[1:3])
    with pytest.raises(ClipxError, match="has no model"):
        again.for_classes(text, **other)
    again.attach(clip())
    torch.testing.assert_close(
        again.for_classes(text, **other).logits(queries), adapter.logits(queries)[:, 1:3]
    )


def test_a_bias_is_added_and_not_trained(monkeypatch):
    tower = clip().model
    weight = tower.text_projection.detach()
    linear = nn.Linear(*weight.shape).double()
    linear.weight.data, linear.bias.data = weight.T.clone(), torch.full((weight.shape[1],), 0.05).double()
    monkeypatch.delitem(tower._parameters, "text_projection")
    monkeypatch.setitem(tower._modules, "text_projection", linear)
    adapter = trained(steps=3, lr=0.01)
    assert torch.equal(adapter.projection_bias_, linear.bias)
    prompts = texts_before_projection(clip(), PROMPTS).unflatten(0, (len(NAMES), 2))
    expected = class_rows(prompts, adapter.projection_, linear.bias.detach())
    torch.testing.assert_close(adapter.text_classifier_, expected)


def test_a_tower_without_a_projection_is_named(monkeypatch):
    monkeypatch.setitem(clip().model._parameters, "text_projection", None)
    with pytest.raises(ClipxError, match="does not end in a linear projection") as caught:
        trained()
    assert "--method rla" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lam": "1/N"}, "lam is"),
        ({"lr": 0}, "lr is 0"),
        ({"steps": -1}, "steps is"),
        ({"eps": 0}, "eps is 0"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(ClipxError, match=message):
        ProLIPText(**given)


def test_names_must_be_as_many_as_classes():
    with pytest.raises(ClipxError, match="8 class names for 9 classes"):
        fitted(ProLIPText(steps=0), class_names=NAMES[1:], templates=TEMPLATES)
    with pytest.raises(ClipxError, match="1 class names for 2 classes"):
        trained(steps=0).for_classes(zero_shot(NAMES[:2]), class_names=NAMES[:1], templates=TEMPLATES)

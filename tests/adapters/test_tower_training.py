"""What LoRA and CLIP-SVD have in common, on a micro model and pictures in the colour of their class."""

import copy
import warnings

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from clipx.adapters import protocol, tower_training
from clipx.adapters.clip_svd import CLIPSVD
from clipx.adapters.lora import LoRA
from clipx.adapters.saving import load, save
from clipx.adapters.tower_training import cosine_rate, published_steps
from clipx.data.shots import ShotImages
from clipx.data.transforms import TrainTransform
from clipx.errors import BadSample, ClipxError
from clipx.inference.adapted import Adapted
from clipx.inference.zero_shot import zero_shot_classifier
from clipx.models.clip import images_to_features

NAMES = ["ant", "bee", "cow"]
COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 230)]
TEMPLATES = ["a picture of a {}", "a {}"]
SCALE = 20.0
BOTH = pytest.mark.parametrize("make", [LoRA, CLIPSVD])


class Paints:
    def __init__(self, bad=()):
        self.bad = bad

    def examples(self, indices):
        return [
            BadSample("truncated") if index in self.bad else {"image": self.pixels(index)}
            for index in indices
        ]

    def pixels(self, index):
        noise = np.random.default_rng(index).normal(0, 60, (32, 32, 3))
        return np.clip(np.array(COLOURS[index % 3]) + noise, 0, 255).astype(np.uint8)


def shots(clip, count=12, labels=None, seed=0, bad=()):
    given = {
        "transform": TrainTransform(32, (0.5, 1.0), flip=0.5),
        "preprocess": clip.preprocess,
        "seed": seed,
    }
    labels = np.arange(count) % 3 if labels is None else labels
    return ShotImages(Paints(bad), list(range(count)), labels, **given)


def fitted(adapter, micro, **given):
    images = given.pop("images", None) or shots(micro)
    features = torch.cat([images_to_features(micro, pixels) for pixels, _ in images.plain(64)])
    offered = {"clip": micro, "images": images, "class_names": NAMES, "templates": TEMPLATES, **given}
    classifier = zero_shot_classifier(micro, NAMES, TEMPLATES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return protocol.fit(adapter, features, images.labels, classifier, logit_scale=SCALE, **offered)


def embedded(clip, indices=range(100, 160)):
    pixels = torch.stack([clip.preprocess(Paints().pixels(index)) for index in indices])
    return images_to_features(clip, pixels), torch.tensor([index % 3 for index in indices])


def right(adapter, clip):
    rows, truth = embedded(adapter.adapted(clip))
    return float((adapter.logits(rows).argmax(1) == truth).float().mean())


@BOTH
def test_no_step_is_zero_shot_with_one_prompt(make, micro):
    adapter = fitted(make(epochs=0), micro)
    rows, _ = embedded(micro)
    own, _ = embedded(adapter.adapted(micro))
    assert torch.equal(own, rows)
    expected = SCALE * rows @ zero_shot_classifier(micro, NAMES, TEMPLATES[:1]).T
    assert torch.equal(adapter.logits(own), expected)


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(epochs=30, lr=1e-2, batch_size=6),
        LoRA(epochs=30, lr=1e-2, batch_size=6, towers=["image"], targets=["q", "k", "v", "o", "mlp"]),
        CLIPSVD(epochs=30, lr=3e-2, batch_size=6),
        CLIPSVD(epochs=30, lr=3e-2, batch_size=6, towers=["image"], share=0.5),
        LoRA(epochs=30, lr=1e-2, batch_size=6, precision="bf16"),
        CLIPSVD(epochs=30, lr=3e-2, batch_size=6, precision="fp16"),
    ],
    ids=["lora", "lora-image", "svd", "svd-image", "bf16", "fp16"],
)
def test_it_learns(micro, adapter):
    before = fitted(type(adapter)(epochs=0), micro)
    assert right(fitted(adapter, micro), micro) > max(0.8, right(before, micro) + 0.2)
    assert {value.dtype for value in adapter.weights_.values()} == {torch.float32}


@BOTH
def test_the_model_stays_as_it_was(make, micro):
    clip = copy.deepcopy(micro)
    clip.model.logit_scale.requires_grad_(False)
    trainable = {name: parameter.requires_grad for name, parameter in clip.named_parameters()}
    fingerprint, random = clip.fingerprint(), torch.get_rng_state()
    adapter = fitted(make(epochs=3), clip)
    assert clip.fingerprint() == fingerprint
    assert torch.equal(torch.get_rng_state(), random)
    tower = adapter.adapted(clip)
    assert tower.fingerprint() != fingerprint
    for each in (clip, tower):
        assert {name: parameter.requires_grad for name, parameter in each.named_parameters()} == trainable
        assert not each.training


@BOTH
@pytest.mark.parametrize("name", ["micro", "micro_resnet"])
def test_what_is_saved_is_what_was_fitted_and_open_clip_loads_it(make, name, tmp_path, request):
    clip = request.getfixturevalue(name)
    extra = {"targets": ["v", "o", "conv"], "towers": ["image"]} if name == "micro_resnet" else {}
    adapter = fitted(make(epochs=4, lr=1e-2, **extra), clip)
    save(adapter, tmp_path / "adapter.safetensors")
    again = load(tmp_path / "adapter.safetensors")
    assert again.weights_.keys() == adapter.weights_.keys()
    assert all(torch.equal(again.weights_[key], value) for key, value in adapter.weights_.items())
    tower, other = adapter.adapted(clip), again.adapted(clip)
    rows, _ = embedded(tower)
    torch.testing.assert_close(embedded(other)[0], rows, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.logits(rows), adapter.logits(rows))
    assert again.adapted(clip) is other
    assert list(tower.state_dict()) == list(clip.state_dict())

    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{tower.save(tmp_path / 'model')}")
    pixels = torch.stack([clip.preprocess(Paints().pixels(index)) for index in range(100, 160)])
    with torch.no_grad():
        theirs = model.eval().encode_image(clip.normalize(pixels), normalize=True)
        classes = model.encode_text(
            clip.tokenize(["a picture of a " + each for each in NAMES]), normalize=True
        )
    torch.testing.assert_close(theirs, rows, atol=1e-5, rtol=0)
    if not extra:
        torch.testing.assert_close(SCALE * theirs @ classes.T, adapter.logits(rows), atol=1e-3, rtol=0)


@BOTH
def test_a_batch_norm_keeps_its_statistics(make, micro_resnet):
    adapter = fitted(make(epochs=2, lr=1e-2, targets=["v", "conv"], towers=["image"]), micro_resnet)
    before, after = micro_resnet.state_dict(), adapter.adapted(micro_resnet).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    convolutions = {name for name in before if ".layer" in name and before[name].ndim == 4}
    assert changed == {*convolutions, "model.visual.attnpool.v_proj.weight"}


@BOTH
def test_a_frozen_tower_keeps_what_it_gives(make, micro):
    rows, _ = embedded(micro)
    image = fitted(make(epochs=3, lr=1e-2, towers=["image"]), micro)
    assert torch.equal(image.text_classifier_, zero_shot_classifier(micro, NAMES, TEMPLATES))
    assert not torch.equal(embedded(image.adapted(micro))[0], rows)
    text = fitted(make(epochs=3, lr=1e-2, towers=["text"]), micro)
    assert torch.equal(embedded(text.adapted(micro))[0], rows)
    single = zero_shot_classifier(micro, NAMES, TEMPLATES[:1])
    assert not torch.allclose(text.text_classifier_, single, atol=1e-4)


@BOTH
def test_the_seed_decides(make, micro):
    def weights(**given):
        adapter = fitted(
            make(epochs=2, lr=1e-2, **given), micro, images=shots(micro, seed=given.get("seed", 0))
        )
        return torch.cat([value.flatten() for value in adapter.weights_.values()])

    assert torch.equal(weights(seed=1), weights(seed=1))
    assert not torch.equal(weights(seed=1), weights(seed=2))


def test_the_template_is_the_first_of_the_datas_or_ones_own(micro):
    assert fitted(LoRA(epochs=0), micro).template_ == TEMPLATES[0]
    assert fitted(LoRA(epochs=0), micro, templates=()).template_ == "a photo of a {}."
    own = fitted(LoRA(epochs=0, template="one {} here"), micro)
    assert torch.equal(own.text_classifier_, zero_shot_classifier(micro, NAMES, ["one {} here"]))


@BOTH
def test_other_classes(make, micro):
    adapter = fitted(make(epochs=3, lr=1e-2), micro)
    adapted = Adapted(micro, adapter, NAMES, TEMPLATES)
    assert adapted.tower is adapter.adapted(micro)
    rows, _ = embedded(adapted.tower)
    torch.testing.assert_close(adapted.over(["cow", "ant"]).logits(rows), adapter.logits(rows)[:, [2, 0]])
    other = adapted.over(["cow", "elk"])
    torch.testing.assert_close(other.logits(rows)[:, 0], adapter.logits(rows)[:, 2], atol=1e-4, rtol=0)
    expected = zero_shot_classifier(adapted.tower, ["cow", "elk"], TEMPLATES[:1])
    assert torch.equal(other.adapter.text_classifier_, expected)
    assert other.tower is adapted.tower
    assert len(adapter.text_classifier_) == 3
    elsewhere = adapter.for_classes(expected, clip=micro, class_names=["cow", "elk"], templates=["my {}"])
    assert elsewhere.template_ == "my {}"
    assert torch.equal(adapter.for_classes(expected).text_classifier_, expected)
    with pytest.raises(ClipxError, match="there are no classes"):
        adapter.for_classes(expected[:0])


def test_many_prompts_cost_no_more_memory_and_change_nothing(micro, monkeypatch):
    given = {"epochs": 3, "lr": 1e-2, "dropout": 0.0}
    at_once = fitted(LoRA(**given), micro)
    calls = []
    plain = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(tower_training, "_TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(
        tower_training, "checkpoint", lambda *args, **more: calls.append(1) or plain(*args, **more)
    )
    parts = fitted(LoRA(**given), micro)
    assert len(calls) == 3 * 2
    for key, value in at_once.weights_.items():
        torch.testing.assert_close(parts.weights_[key], value, atol=1e-5, rtol=0)


def test_one_step_is_the_step_of_adamw(micro):
    images = shots(micro, 6)
    adapter = CLIPSVD(epochs=1, lr=1e-3, weight_decay=0.1, batch_size=6, towers=["text"], targets=["v"])
    adapter = fitted(adapter, micro, images=images)
    own = copy.deepcopy(micro)
    (change,) = adapter._change(own).values()
    pixels, labels = next(iter(images.batches(6)))
    texts = own.encode_text(own.tokenize(["a picture of a " + name for name in NAMES]))
    functional.cross_entropy(SCALE * images_to_features(micro, pixels) @ texts.T, labels).backward()
    gradient = change.values.grad
    step = gradient / (gradient.abs() + 1e-8)  # the moments of the first step, corrected, are the gradient
    expected = change.start * (1 - 1e-3 * 0.1) - 1e-3 * step
    clear = gradient.abs() > 1e-4  # below it the sign is rounding
    assert clear.sum() > 10
    torch.testing.assert_close(
        adapter.weights_["text.0.v.0.values"][clear], expected[clear], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ((64, 16, 32, 500, None), 8000),
        ((64, 1, 32, 200, None), 200),
        ((64, 16, 32, 500, 10), 20),
        ((65, 16, 32, 500, 10), 30),
        ((5, 16, 32, 500, 0), 0),
    ],
)
def test_the_published_number_of_steps(given, steps):
    assert published_steps(*given) == steps


def test_the_cosine_is_that_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    for period, steps in ((50, 50), (4, 14)):  # once down; up and down with the epochs, as one code does
        optimizer = torch.optim.SGD([parameter], lr=2e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period, eta_min=1e-6)
        for step in range(steps):
            assert cosine_rate(step, period, 2e-4) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
            optimizer.step()
            schedule.step()


def test_shortened_training_goes_as_far_in_fewer_steps(micro, monkeypatch):
    seen = []
    monkeypatch.setattr(
        tower_training, "cosine_rate", lambda step, period, lr: seen.append((step, period, lr)) or lr
    )
    adapter = fitted(LoRA(steps_per_shot=2, shorten=3, lr=1e-3), micro)  # 8 steps by 3
    assert seen == [(step, 3, pytest.approx(3e-3)) for step in range(3)]
    assert adapter.steps_ == 3
    seen.clear()
    assert fitted(LoRA(steps_per_shot=2, lr=1e-3), micro).steps_ == 8
    assert seen[-1] == (7, 8, 1e-3)


def test_the_rate_follows_the_steps_or_the_epochs(micro, monkeypatch):
    seen = []
    monkeypatch.setattr(
        tower_training, "cosine_rate", lambda step, period, lr: seen.append((step, period)) or lr
    )
    fitted(CLIPSVD(epochs=4, batch_size=6), micro)
    assert seen == [(step, 8) for step in range(8)]
    seen.clear()
    fitted(CLIPSVD(epochs=4, batch_size=6, parity_cyclic_lr=True), micro)
    assert seen == [(step, 4) for step in range(8)]


def test_progress_is_told(micro):
    told = []
    fitted(LoRA(epochs=3), micro, progress=lambda *each: told.append(each))
    assert told == [("step", 1, 3), ("step", 2, 3), ("step", 3, 3)]


def test_a_shortened_budget_and_a_resnet_are_said(micro, micro_resnet):
    def said(adapter, clip):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            images = shots(clip)
            rows = torch.cat([images_to_features(clip, pixels) for pixels, _ in images.plain(64)])
            adapter.fit(
                rows,
                images.labels,
                zero_shot_classifier(clip, NAMES),
                logit_scale=SCALE,
                clip=clip,
                images=images,
                class_names=NAMES,
            )
        return [str(each.message) for each in caught]

    (short,) = said(LoRA(shorten=500), micro)
    assert "4 steps instead of 2000, at 500 times the learning rate" in short
    assert said(LoRA(epochs=1), micro) == []
    (pool,) = said(LoRA(epochs=1), micro_resnet)
    assert "only the attention pool is trained" in pool
    assert said(LoRA(epochs=1, targets=["conv"], towers=["image"]), micro_resnet) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": None}, "LoRA trains the towers: it needs the model"),
        ({"class_names": NAMES[:2]}, "it needs the model, the images and the class names"),
        ({"class_names": ["ant", " ", "cow"]}, "class 1 has a blank name"),
    ],
)
def test_what_is_missing_is_named(micro, given, message):
    with pytest.raises(ClipxError, match=message):
        fitted(LoRA(epochs=1), micro, **given)


def test_bad_images_are_named(micro):
    with pytest.raises(ClipxError, match="label 7 of row 1"):
        tower_training.fit_towers(
            LoRA(),
            LoRA()._change,
            *(embedded(micro, range(3))),
            zero_shot_classifier(micro, NAMES),
            logit_scale=SCALE,
            validation=None,
            clip=micro,
            images=shots(micro, 3, labels=[0, 7, 1]),
            class_names=NAMES,
            templates=(),
            progress=None,
        )
    images = shots(micro)
    features, labels = embedded(micro, range(12))
    images.source = Paints(bad=[4])
    with pytest.raises(BadSample):
        LoRA(epochs=3).fit(
            features,
            labels,
            zero_shot_classifier(micro, NAMES),
            logit_scale=SCALE,
            clip=micro,
            images=images,
            class_names=NAMES,
        )


def test_divergence_is_an_error(micro):
    with pytest.raises(ClipxError, match="training diverged"):
        fitted(LoRA(epochs=5, lr=1e30), micro)


def test_another_model_is_told_from_ones_own(micro, micro_resnet, tmp_path):
    adapter = fitted(LoRA(epochs=1), micro)
    save(adapter, tmp_path / "a")
    with pytest.raises(ClipxError, match="fitted on a model of another shape"):
        load(tmp_path / "a").adapted(micro_resnet)
    with pytest.raises(ClipxError, match="not fitted"):
        LoRA().adapted(micro)
    with pytest.raises(ClipxError, match="features has 5 dimensions, the classifier 32"):
        adapter.logits(torch.eye(5))


@BOTH
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"towers": ["images"]}, "towers has 'images'"),
        ({"targets": []}, "targets is"),
        ({"blocks": "upper"}, "blocks is 'upper'"),
        ({"steps_per_shot": 0}, "steps_per_shot is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"shorten": 0}, "shorten is 0"),
        ({"lr": 0}, "lr is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"template": "a photo"}, "does not hold one {}"),
    ],
)
def test_settings_out_of_range_are_named(make, given, message):
    with pytest.raises(ClipxError, match=message):
        make(**given)


def test_layers_that_do_not_exist_are_named(micro):
    with pytest.raises(ClipxError, match="the image tower: there is no block 1"):
        fitted(LoRA(blocks=[1]), micro)

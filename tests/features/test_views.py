import numpy as np
import pytest
import torch
from torch.nn import functional

from clipx.data.transforms import TrainTransform
from clipx.errors import BadSample, ClipxError
from clipx.features.encode import encode
from clipx.features.projection import before_projection, image_projection
from clipx.features.views import Chosen, Views
from clipx.models.clip import CLIP, images_to_features
from clipx.models.loading import load


class Pictures:
    """Ten pictures, of which the fourth cannot be used; counts what is opened."""

    name, classes, templates = "pictures", ["ant", "bee"], None

    def __init__(self, content="pictures"):
        self.content, self.opened = content, []

    def __len__(self):
        return 10

    def examples(self, indices):
        self.opened += list(indices)
        return [self.example(index) for index in indices]

    def __getitem__(self, index):
        return self.example(index)

    def example(self, index):
        if index == 3:
            return BadSample("truncated: 3.jpg")
        pixels = np.random.default_rng(index).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        return {"image": pixels, "captions": ["one"], "label": index % 2, "id": f"picture {index}"}

    def fingerprint(self):
        return self.content


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load("micro").eval()


def run(clip, source, root, **options):
    return encode(clip, source, split="train", text=False, root=root, batch_size=8, workers=0, **options)


def test_views_are_kept_with_the_image_they_show(clip, tmp_path):
    views = Views(Pictures(), [5, 0, 3], 4, size=32)
    assert len(views) == 12
    features = run(clip, views, tmp_path)
    assert (features.index // 4).tolist() == [0] * 4 + [1] * 4
    assert features.ids == ["picture 5"] * 4 + ["picture 0"] * 4
    assert features.labels.tolist() == [1] * 4 + [0] * 4
    assert features.skipped == {"truncated": 4}
    assert len({tuple(row) for row in features.image.tolist()}) == 8
    transform = TrainTransform(32, (0.5, 1.0), flip=0.5)
    assert tuple(views.transform.scale) == transform.scale
    assert views.transform.flip == 0.5


def test_a_view_depends_on_its_image_and_number_alone():
    one = Views(Pictures(), [5, 0], 4, size=32)
    other = Views(Pictures(), [1, 0], 2, size=32)
    assert (one[4]["image"] == other[2]["image"]).all()
    assert (one[5]["image"] == other[3]["image"]).all()
    assert (one[4]["image"] != one[5]["image"]).any()
    with pytest.raises(BadSample, match="truncated"):
        Views(Pictures(), [3], 1, size=32)[0]


def test_an_image_is_opened_once_a_batch():
    source = Pictures()
    Views(source, [5, 0], 4, size=32).examples(range(8))
    assert source.opened == [5, 0]


def test_the_store_tells_draws_and_settings_apart(clip, tmp_path, monkeypatch):
    first = run(clip, Views(Pictures(), [5, 0], 2, size=32), tmp_path)
    for other in (
        Views(Pictures(), [0, 5], 2, size=32),
        Views(Pictures(), [5, 0], 2, size=32, flip=0.0),
        Views(Pictures(), [5, 0], 2, size=32, scale=(0.9, 1.0)),
        Views(Pictures("others"), [5, 0], 2, size=32),
        Chosen(Pictures(), [5, 0]),
    ):
        assert run(clip, other, tmp_path).encoded
    monkeypatch.setattr(CLIP, "encode_image", lambda *_, **__: pytest.fail("encoded twice"))
    again = run(clip, Views(Pictures(), [5, 0], 2, size=32), tmp_path)
    assert not again.encoded
    assert torch.equal(first.image, again.image)


def test_chosen_items_keep_their_places(clip, tmp_path):
    features = run(clip, Chosen(Pictures(), [7, 3, 2]), tmp_path)
    assert features.index.tolist() == [7, 2]
    assert features.labels.tolist() == [1, 0]


def test_a_source_that_is_not_recognised_is_not_kept(clip, tmp_path, monkeypatch):
    monkeypatch.delattr(Pictures, "fingerprint")
    assert run(clip, Chosen(Pictures(), [1]), tmp_path).encoded
    assert run(clip, Views(Pictures(), [1], 2, size=32), tmp_path).encoded
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("views", [0, -1, True, 1.5])
def test_views_that_are_none(views):
    with pytest.raises(ClipxError, match=f"views={views}"):
        Views(Pictures(), [0], views, size=32)


def test_raw_rows_keep_their_length(clip, tmp_path):
    source = Chosen(Pictures(), [0, 1, 2])
    raw, unit = run(clip, source, tmp_path, bank="raw"), run(clip, source, tmp_path)
    assert torch.allclose(raw.image, unit.image, atol=1e-6)
    assert unit.norms is None
    images = torch.stack([clip.preprocess(source[place]["image"]) for place in range(3)])
    with torch.no_grad():
        rows = clip.encode_image(clip.normalize(images), normalize=False)
    assert torch.allclose(raw.norms, rows.norm(dim=1), rtol=1e-5)
    with pytest.raises(ClipxError, match="no bank 'tokens'"):
        run(clip, source, tmp_path, bank="tokens")


TOWERS = {
    "vit": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 32},
    "timm": {"image_size": 32, "timm_model_name": "resnet10t", "timm_proj": "linear", "timm_pool": "avg"},
}


@pytest.mark.parametrize("tower", TOWERS)
def test_what_the_projection_is_given(tower, clip, tmp_path):
    import open_clip

    torch.manual_seed(1)
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    size = TOWERS[tower]["image_size"]
    model = open_clip.CLIP(24, TOWERS[tower], text)
    cfg = {**clip.preprocess_cfg, "size": size}
    made = CLIP(model, clip.tokenizer, {"tower": tower}, cfg, tower).eval()
    source = Chosen(Pictures(), [0, 1, 2])
    features = run(made, source, tmp_path, bank="pre_projection")
    projection = image_projection(made)
    width, dims = projection.weight.shape
    assert features.pre.shape == (3, width)
    assert dims == 24
    images = torch.stack([made.preprocess(source[place]["image"]) for place in range(3)])
    assert torch.allclose(features.image, images_to_features(made, images), atol=1e-5)
    assert torch.allclose(functional.normalize(projection(features.pre), dim=1), features.image, atol=1e-6)
    again = before_projection(made, images)
    assert torch.allclose(again, features.pre, atol=1e-5)
    assert torch.allclose(images_to_features(made, images), features.image, atol=1e-5)


def test_a_tower_without_a_projection(clip):
    import copy

    bare = copy.deepcopy(clip)
    bare.model.visual.proj = None
    with pytest.raises(ClipxError, match="does not end in a linear projection") as caught:
        before_projection(bare, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert "--method rla" in caught.value.hint

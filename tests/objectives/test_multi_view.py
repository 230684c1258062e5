import copy

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.infonce import info_nce
from clipx.objectives.multi_view import MultiView, view_grid
from clipx.training.module import TrainingModule


def views(n=5, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(4, n, d, generator=generator, dtype=torch.float64), dim=-1)


def test_the_loss_is_the_mean_over_the_four_pairs():
    i1, i2, t1, t2 = views()
    expected = [info_nce(i, t, 7.0, label_smoothing=0.1) for i in (i1, i2) for t in (t1, t2)]
    found = view_grid([i1, i2], [t1, t2], 7.0, label_smoothing=0.1)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_views_alike_and_one_pair_are_infonce():
    image, _, text, _ = views()
    torch.testing.assert_close(view_grid([image], [text], 7.0), info_nce(image, text, 7.0))
    torch.testing.assert_close(view_grid([image, image], [text], 7.0), info_nce(image, text, 7.0))


def test_gradients():
    given = [each.clone().requires_grad_() for each in views(4)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, c, d, s: view_grid([a, b], [c, d], s), (*given, scale))


def test_fields_of_a_batch(micro):
    clip = copy.deepcopy(micro)
    generator = torch.Generator().manual_seed(0)
    fields = ("image_view_1", "image_view_2")
    batch = {
        field: torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for field in fields
    }
    batch |= {
        "text_view_1": clip.tokenize(["a", "b c", "d"]),
        "text_view_2": clip.tokenize(["e", "f", "g h"]),
    }
    module = TrainingModule(clip, {"views": MultiView(label_smoothing=0.1)})
    assert module.needs == sorted(batch)
    images = [clip.encode_image(clip.normalize(batch[field])) for field in fields]
    texts = [clip.encode_text(batch[field]) for field in ("text_view_1", "text_view_2")]
    expected = view_grid(images, texts, clip.logit_scale, label_smoothing=0.1)
    torch.testing.assert_close(module(batch)["multi_view"], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(batch)["multi_view"], expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": []}, "no list of fields"),
        ({"images": "image"}, "no list of fields"),
        ({"images": ["text"]}, "no such field 'text'"),
        ({"texts": ["text_view_3"]}, "no such field 'text_view_3'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ClipxError, match=message):
        MultiView(**options)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "multi-view")

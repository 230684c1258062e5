import functools

import pytest
import torch

from clipx.errors import ClipxError
from clipx.training.encoded import Encoded


@pytest.fixture
def batch(micro):
    return {
        "image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        "text": micro.tokenize(["a circle", "a square"]),
        "negative_text": micro.tokenize(["a square", "a circle"]),
        "label": torch.tensor([0, 1]),
    }


def test_each_field_is_encoded_once(micro, batch, monkeypatch):
    calls = []
    for tower in ("encode_image", "encode_text"):
        encode = getattr(micro, tower)
        counted = functools.partial(lambda tower, encode, x: calls.append(tower) or encode(x), tower, encode)
        monkeypatch.setattr(micro, tower, counted)
    encoded = Encoded(micro, batch)
    for _ in range(2):
        encoded.image(), encoded.text(), encoded.text("negative_text")
    assert calls == ["encode_image", "encode_text", "encode_text"]
    assert encoded.image() is encoded.image()
    torch.testing.assert_close(encoded.text("negative_text"), encoded.text().flip(0))


def test_gradients_reach_both_towers_and_the_scale(micro, batch):
    encoded = Encoded(micro, batch)
    (encoded.logit_scale * encoded.image() @ encoded.text().T).trace().backward()
    model = micro.model
    for parameter in (model.visual.proj, model.token_embedding.weight, model.logit_scale):
        assert parameter.grad.abs().sum() > 0
    micro.zero_grad()


def test_raw_fields_and_missing_ones(micro, batch):
    encoded = Encoded(micro, batch)
    assert encoded["label"] is batch["label"]
    assert encoded.logit_bias is None
    with pytest.raises(ClipxError, match="no field 'negative_image', only image, label, negative_text, text"):
        encoded.image("negative_image")


def test_texts_of_no_field_have_the_precision_of_the_towers(micro, batch):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = Encoded(micro, batch)
        with torch.autocast("cpu", enabled=False):
            found, exact = encoded.embed_texts(batch["text"]), micro.encode_text(batch["text"])
        assert torch.equal(found, encoded.text())
    assert not torch.equal(found, exact)
    assert torch.equal(Encoded(micro, batch).embed_texts(batch["text"]), exact)

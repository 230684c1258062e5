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


def test_what_becomes_of_rows_and_the_rows_come_from_one_pass(micro, batch, monkeypatch):
    calls = []
    for tower in ("encode_image", "encode_text"):
        encode = getattr(micro, tower)
        counted = functools.partial(
            lambda tower, encode, x, **how: calls.append(tower) or encode(x, **how), tower, encode
        )
        monkeypatch.setattr(micro, tower, counted)
    encoded = Encoded(micro, batch)
    for rows, field in ((encoded.image, "image"), (encoded.text, "text")):
        features = encoded.features(field)
        torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), rows(field))
        assert (features.norm(dim=-1) - 1).abs().min() > 1e-3
        assert encoded.features(field) is features
    assert calls == ["encode_image", "encode_text"]


def test_what_objectives_leave_for_one_another(micro, batch):
    encoded = Encoded(micro, batch)
    rows = torch.zeros(2, 32)
    encoded.put("masked_text", rows)
    encoded.give("something", 3)
    encoded.note("figure", torch.tensor(2.0, requires_grad=True))
    assert encoded.text("masked_text") is rows
    assert encoded.given("something") == 3
    assert not encoded.notes["figure"].requires_grad
    made = [encoded.once("owner", lambda: object()) for _ in range(2)]
    assert made[0] is made[1]
    with pytest.raises(ClipxError, match="no objective gives 'nothing'"):
        encoded.given("nothing")

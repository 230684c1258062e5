import pytest
import torch

from clipx.errors import ClipxError
from clipx.models.loading import load
from clipx.objectives.fused_language import FusedLanguage
from clipx.objectives.infonce import InfoNCE
from clipx.objectives.masked_language import MaskedLanguage
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule

CAPTIONS = ["a small red circle left of a large blue square", "a green star above a pink ring"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load("tiny-vit")


def batch(clip, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (2, 3, 40, 40), generator=generator).byte()
    return {"image": pixels, "text": clip.tokenize(CAPTIONS)}


def told(objective, clip, given):
    torch.manual_seed(3)
    encoded = Encoded(clip, given)
    objective.prepare(encoded)
    return objective(encoded)["mlm"]


def opened(clip, **values):
    """Fusion blocks whose gates are open."""
    torch.manual_seed(2)
    objective = FusedLanguage(clip, share=0.5, **values)
    for fusion in objective.fusions.values():
        torch.nn.init.ones_(fusion.gate)
    return objective


def test_at_first_the_image_says_nothing(clip):
    torch.manual_seed(2)
    plain = MaskedLanguage(clip, share=0.5)
    torch.manual_seed(2)
    fused = FusedLanguage(clip, share=0.5)
    torch.testing.assert_close(told(fused, clip, batch(clip)), told(plain, clip, batch(clip)))
    told(fused, clip, batch(clip)).backward()
    assert all(fusion.gate.grad.abs() > 0 for fusion in fused.fusions.values())
    clip.zero_grad()


def test_then_it_does_and_only_what_is_masked_is_asked_for(clip):
    objective = opened(clip)
    first, other = (told(objective, clip, batch(clip, seed)) for seed in (1, 2))
    assert first.item() != pytest.approx(other.item(), rel=1e-4)


def test_the_words_that_are_hidden_do_not_come_in_by_the_image(clip):
    """Of captions that differ in hidden words alone the features are the same: nothing unmasked leaks."""
    objective = opened(clip)
    objective.shares = {"share": 1.0, "mask_share": 1.0, "random_share": 0.0}
    found = []
    for captions in (["a red ring"], ["a red star"]):
        given = {"image": batch(clip)["image"][:1], "text": clip.tokenize(captions)}
        torch.manual_seed(3)
        found.append(objective._embed(Encoded(clip, given))[0])
    assert torch.equal(clip.tokenize(["a red ring"])[0] != 0, clip.tokenize(["a red star"])[0] != 0)
    torch.testing.assert_close(found[0], found[1])


def test_embeddings_know_nothing_of_it(clip):
    given = batch(clip)
    together = TrainingModule(clip, {"infonce": InfoNCE(), "mlm": opened(clip)})(given)
    alone = TrainingModule(clip, {"infonce": InfoNCE()})(given)
    torch.testing.assert_close(together["infonce"], alone["infonce"])


def test_blocks_stand_after_shares_of_the_depth(clip):
    assert {*FusedLanguage(clip).fusions} == {"1", "3", "4"}
    assert {*FusedLanguage(clip, layers=[0.5]).fusions} == {"2"}
    for layers in ([], [0.0], [1.5]):
        with pytest.raises(ClipxError, match="no shares of a depth"):
            FusedLanguage(clip, layers=layers)


def test_half_precision_towers(clip):
    module = TrainingModule(clip, {"mlm": opened(clip)})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(batch(clip))["loss"]
    loss.backward()
    assert all(value.grad.isfinite().all() for value in module.parameters() if value.grad is not None)
    clip.zero_grad()

"""Claims: what cards say, the cells that test it, and the verdict."""

import pytest

from clipx import config
from clipx.cards import Card, list_cards
from clipx.errors import ClipxError
from clipx.suites.cells import cells_of
from clipx.suites.claims import budget_of, chance, claim_of, claims_of, drafts_of_claims, verdict
from clipx.suites.suite import open_suite

CARDS = list_cards([config.conf_dir()])


def card(claim, command="adapt", name="gda", settings=None):
    return Card(command, name, config.conf_dir() / "gda.yaml", {"claim": claim}, settings or {})


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.command}-{card.name}")
def test_every_card_claims_something_that_can_be_put_to_the_test(card):
    suite = open_suite(["suite=claims"], method=f"{card.command}/{card.name}")
    (claim,) = suite.claims
    cells = cells_of(suite.drafts())
    sides = [claim.method] if claim.over == "chance" else [claim.method, claim.over]
    assert [cell.method for cell in cells] == [side for side in sides for _ in range(3)]
    assert len({cell.key for cell in cells}) == len(cells)
    if claim.over == "chance":
        assert chance(claim.metric, {"classes": 10, "samples": 9, "texts": 9, "pairs": 9}) is not None


def test_a_claim_is_read_from_its_card():
    claim = claim_of(
        card({"metric": "top1", "over": "zero-shot", "data": "digits", "shots": 4, "margin": 0.02})
    )
    assert (claim.metric, claim.over, claim.margin, claim.vary) == ("top1", "zero-shot", 0.02, "seed")
    assert claim.settings == {"data": "digits", "shots": 4}
    assert claim.statement == "top1 >= zero-shot + 0.02 (data=digits, shots=4)"
    guess = claim_of(card({"metric": "top1", "over": "chance", "factor": 5, "vary": "data.seed"}))
    assert guess.statement == "top1 >= 5 x chance"
    assert claim_of(Card("adapt", "x", config.conf_dir(), {}, {})) is None
    lower = claim_of(card({"metric": "ece", "below": "zero-shot", "margin": 0.02}))
    assert (lower.over, lower.lower) == ("zero-shot", True)
    assert lower.statement == "ece <= zero-shot - 0.02"
    assert claim_of(card({"metric": "ece", "below": "x", "margin": -0.1})).statement == "ece <= x + 0.1"


def test_a_claim_about_what_only_the_user_has_is_put_to_the_test_where_it_is_given():
    asking = card({"metric": "top1", "over": "chance", "factor": 2, "given": ["model"]}, name="asking")
    plain = card({"metric": "top1", "over": "chance", "factor": 2}, name="plain")
    assert claim_of(asking).given == ("model",)
    assert claim_of(asking).settings == {}
    assert [each.method for each in claims_of([asking, plain], None)] == ["plain"]
    assert [each.method for each in claims_of([asking, plain], None, ["model"])] == ["asking", "plain"]
    assert [each.method for each in claims_of([asking, plain], ["asking"])] == ["asking"]


def test_a_suite_of_all_claims_knows_what_the_user_has_given(tmp_path):
    for overrides, found in (((), False), ((f"model={tmp_path}",), True)):
        suite = open_suite(["suite=claims", *overrides])
        assert ("score-ensemble" in {claim.method for claim in suite.claims}) == found


WRONG = [
    {"metric": "top1", "over": "zero-shot"},
    {"metric": "top1", "over": "zero-shot", "factor": 5},
    {"metric": "top1", "over": "chance", "margin": 0.1},
    {"metric": "top1", "over": "chance", "margin": 0.1, "factor": 2},
    {"over": "chance", "factor": 2},
    {"metric": "top1", "below": "chance", "factor": 2},
    {"metric": "top1", "below": "gda", "over": "gda", "margin": 0},
    "better",
]


@pytest.mark.parametrize("claim", WRONG, ids=str)
def test_half_a_claim_is_refused(claim):
    with pytest.raises(ClipxError, match="the claim of adapt/gda"):
        claim_of(card(claim))


def test_both_sides_get_the_same_settings_repetitions_and_budget():
    suite = open_suite(["suite=claims", "claims.budget=2x", "limit=50"], method="eco")
    assert suite.repetitions == 6
    cells = cells_of(suite.drafts())
    assert [(cell.method, cell.seed) for cell in cells] == [
        (method, seed) for method in ("eco", "coop") for seed in range(1, 7)
    ]
    assert {cell.settings["adapter"]["epochs"] for cell in cells} == {100}
    assert {cell.settings["limit"] for cell in cells} == {50}
    # The epochs of an adapter mean nothing to a baseline that has none.
    baseline = cells_of(open_suite(["suite=claims"], method="coop").drafts())[3:]
    assert {cell.method for cell in baseline} == {"zero-shot"}
    assert "epochs" not in baseline[0].settings["adapter"]


def test_a_model_that_a_card_changes_is_that_of_both_sides():
    # SigLIP's card gives the model a bias, infonce's says nothing of models.
    cells = cells_of(open_suite(["suite=claims"], method="pretrain/siglip").drafts())
    assert {cell.method for cell in cells} == {"siglip", "infonce"}
    assert {cell.settings["model"]["name"] for cell in cells} == {"micro"}


def test_what_is_typed_wins_over_the_claim():
    cells = cells_of(open_suite(["suite=claims", "shots=2"], method="tip-adapter").drafts())
    assert {cell.settings["shots"] for cell in cells} == {2}


def test_methods_are_asked_for_by_name():
    assert {claim.command for claim in claims_of(CARDS, ["zero-shot"])} == {"adapt", "zeroshot"}
    assert [claim.command for claim in claims_of(CARDS, ["adapt/zero-shot"])] == ["adapt"]
    with pytest.raises(ClipxError, match="no method 'gdb'") as caught:
        claims_of(CARDS, ["gdb"])
    assert "did you mean 'gda'" in caught.value.hint
    with pytest.raises(ClipxError, match="claims nothing"):
        claims_of([Card("adapt", "x", config.conf_dir(), {}, {})], ["x"])
    with pytest.raises(ClipxError, match="a claim says itself"):
        open_suite(["suite=claims", "metric=top5"])
    with pytest.raises(ClipxError, match="no interval"):
        open_suite(["suite=claims", "claims.repetitions=1"])


def test_a_claim_over_something_that_is_no_method_is_refused():
    strange = [card({"metric": "top1", "over": "zeroshot", "margin": 0})]
    with pytest.raises(ClipxError, match="above 'zeroshot', which is no method") as caught:
        drafts_of_claims(claims_of(strange, None), 3, 1.0, ())
    assert "did you mean 'zero-shot'" in caught.value.hint


@pytest.mark.parametrize(("text", "value"), [("2x", 2.0), ("0.5x", 0.5), (3, 3.0), ("1.", 1.0)])
def test_a_budget_is_a_multiple(text, value):
    assert budget_of(text) == value


@pytest.mark.parametrize("text", ["0x", "-1x", "twice", "", "x"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ClipxError, match="is no budget"):
        budget_of(text)


def test_what_guessing_gives():
    assert chance("top1", {"classes": 20}) == 0.05
    assert chance("top5", {"classes": 4}) == 1.0
    assert chance("mean_per_class", {"classes": 4}) == 0.25
    # 4 images, 3 texts, 5 pairs: a text has 5/3 right images of 4.
    sizes = {"samples": 4, "texts": 3, "pairs": 5}
    assert chance("text_to_image_recall@1", sizes) == pytest.approx(5 / 12)
    assert chance("image_to_text_recall@1", sizes) == pytest.approx(5 / 12)
    assert chance("text_to_image_recall@1", {"samples": 4}) is None
    assert chance("unseen_auroc", {}) == chance("auroc", {}) == 0.5
    assert chance("loss", {"classes": 4}) is None


def test_the_verdict_is_of_the_whole_interval():
    assert verdict(0.02, 0.05, 0.02) == "holds"
    assert verdict(0.01, 0.03, 0.02) == "inconclusive"
    assert verdict(-0.1, 0.019, 0.02) == "does not hold"
    assert verdict(-0.005, 0.2, -0.01) == "holds"
    assert verdict(-0.3, -0.2, 0.2, lower=True) == "holds"
    assert verdict(-0.3, -0.1, 0.2, lower=True) == "inconclusive"
    assert verdict(-0.1, 0.3, 0.2, lower=True) == "does not hold"

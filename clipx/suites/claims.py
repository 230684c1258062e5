"""What the cards claim at small scale, as cells to compare and a verdict on what they gave.

    claim: {metric: top1, over: zero-shot, data: scenes-shift, shots: 16, margin: 0.02}

``metric`` of the method is to be above that of ``over`` by ``margin``; with ``below`` in the place of
``over`` it is to be below it by as much; or, over ``chance``, at least ``factor`` times what guessing gives.
``budget`` holds the settings that grow with the budget, ``vary`` the key that tells repetitions apart
(``seed``), ``given`` the keys that only the user can give, such as the ``model`` of a run: the claims of all
cards go without one that lacks them. Every other key is an override of both sides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipx.cards import Card, list_cards
from clipx.config import conf_dirs
from clipx.errors import ClipxError, did_you_mean
from clipx.suites.cells import Draft, drafts_of
from clipx.suites.grid import Grid, override_text

CHANCE = "chance"
_OWN = {"metric", "over", "below", "margin", "factor", "budget", "vary", "given"}

Verdict = Literal["holds", "does not hold", "inconclusive"]


@dataclass(frozen=True)
class Claim:
    """What a card claims.

    Attributes:
        command: of the card.
        method: that claims it.
        metric: name of the figure.
        over: the method that it is compared with, or ``chance``.
        lower: whether the metric is to be below that of ``over``, not above.
        margin: what the difference must reach.
        factor: of chance that is compared with; 1 where ``over`` is a method.
        settings: overrides of both sides.
        budget: overrides of both sides that grow with the budget.
        vary: key whose values are the repetitions.
        given: keys that the user has to give.
    """

    command: str
    method: str
    metric: str
    over: str
    margin: float
    factor: float
    settings: dict[str, Any]
    budget: dict[str, int | float]
    vary: str
    lower: bool = False
    given: tuple[str, ...] = ()

    @property
    def statement(self) -> str:
        """The claim as a person reads it."""
        if self.over == CHANCE:
            said = f"{self.metric} >= {self.factor:g} x chance"
        else:
            sign = "-" if self.lower == (self.margin >= 0) else "+"
            said = f"{self.metric} {'<=' if self.lower else '>='} {self.over} {sign} {abs(self.margin):g}"
        where = [f"{key}={_short(value)}" for key, value in {**self.settings, **self.budget}.items()]
        return f"{said} ({', '.join(where)})" if where else said

    def grid(
        self,
        side: Card,
        own: Card,
        repetitions: int,
        budget: float,
        overrides: Sequence[str],
        everyones: Collection[str] = (),
    ) -> Grid:
        """The cells of one side.

        What the card of the method itself sets up, such as the epochs of its adapter, concerns the other side
        only where its card has the same key.

        Args:
            side: the card of this side.
            own: the card that makes the claim.
            repetitions: how many; their values are 1, 2, ...
            budget: what the settings of the budget are multiplied by.
            overrides: as typed, for every cell; they win.
            everyones: keys that any method of the command has, whatever its card sets up.
        """
        shared = {**self.settings, **{key: _scaled(value, budget) for key, value in self.budget.items()}}
        typed = {override.partition("=")[0] for override in overrides}
        written = [
            f"{key}={override_text(value)}"
            for key, value in shared.items()
            if key not in typed
            and (
                key.split(".")[0] not in own.settings
                or key.split(".")[0] in everyones
                or _has(side.settings, key)
            )
        ]
        axes = {"method": (side.name,), self.vary: tuple(range(1, repetitions + 1))}
        return Grid(axes, (*written, *overrides))


def claim_of(card: Card) -> Claim | None:
    """What a card claims; None for nothing.

    Raises:
        ClipxError: the claim lacks a part, or has both or none of margin and factor.
    """
    given = card.card.get("claim")
    if given is None:
        return None
    where = f"the claim of {card.command}/{card.name}"
    if not isinstance(given, dict):
        raise ClipxError(f"{where} is no mapping", hint="{metric: top1, over: zero-shot, margin: 0.02}")
    lower = "below" in given
    over = given.get("below" if lower else "over")
    lacking = (
        not isinstance(given.get("metric"), str) or not isinstance(over, str) or {"over", "below"} <= {*given}
    )
    wanted = "factor" if over == CHANCE else "margin"
    other = ({"margin", "factor"} - {wanted}).pop()
    if (
        lacking
        or (lower and over == CHANCE)
        or not isinstance(given.get(wanted), int | float)
        or other in given
    ):
        raise ClipxError(
            f"{where} must have metric, over or below, and {wanted}"
            + (f", not {other}" if other in given else ""),
            hint="{metric: top1, over: zero-shot, margin: 0.02}, or {metric: top1, over: chance, factor: 5}",
        )
    return Claim(
        command=card.command,
        method=card.name,
        metric=given["metric"],
        over=str(over),
        lower=lower,
        margin=float(given.get("margin", 0.0)),
        factor=float(given.get("factor", 1.0)),
        settings={str(key): value for key, value in given.items() if key not in _OWN},
        budget=dict(given.get("budget") or {}),
        vary=str(given.get("vary", "seed")),
        given=tuple(str(key) for key in given.get("given") or ()),
    )


def claims_of(
    cards: Sequence[Card], wanted: Sequence[str] | None, typed: Collection[str] = ()
) -> list[Claim]:
    """The claims of the cards with these names (``gda``, ``adapt/gda``), or of all that have one.

    Args:
        cards: whose claims.
        wanted: names; None for all whose claim asks the user for no other keys than ``typed``.
        typed: keys that the user has given.

    Raises:
        ClipxError: there is no such card, one claims nothing, or a claim is not what it should be.
    """
    if wanted is None:
        claims = [claim for card in cards if (claim := claim_of(card)) is not None]
        return [claim for claim in claims if {*claim.given} <= {*typed}]
    found = []
    for name in wanted:
        own = [card for card in cards if name in (card.name, f"{card.command}/{card.name}")]
        if not own:
            raise ClipxError(f"no method {name!r}", hint=did_you_mean(name, [card.name for card in cards]))
        claimed = [claim for card in own if (claim := claim_of(card)) is not None]
        if not claimed:
            raise ClipxError(f"{name} claims nothing", hint=f"add card.claim to {own[0].path}")
        found += claimed
    return found


def drafts_of_claims(
    claims: Sequence[Claim],
    repetitions: int,
    budget: float,
    overrides: Sequence[str],
    *,
    config_dir: str | os.PathLike[str] | None = None,
    root: Path | None = None,
) -> list[Draft]:
    """The cells of claims: of each those of the method, then those of what it is compared with, if any.

    Args:
        claims: of cards.
        repetitions: of each side.
        budget: what the settings of the claims' budgets are multiplied by.
        overrides: as typed, for every cell.
        config_dir: the user's own conf directory.
        root: the output root.

    Raises:
        ClipxError: the method that is compared with is no card of the command, or as ``drafts_of``.
    """
    cards = {(card.command, card.name): card for card in list_cards(conf_dirs(config_dir))}
    drafts = []
    for claim in claims:
        own = cards[claim.command, claim.method]
        for name in [claim.method] if claim.over == CHANCE else [claim.method, claim.over]:
            if (claim.command, name) not in cards:
                known = [other for command, other in cards if command == claim.command]
                raise ClipxError(
                    f"{claim.command}/{claim.method} claims to be above {name!r}, which is no method",
                    hint=did_you_mean(name, [*known, CHANCE]),
                )
            everyones = _keys_of(claim.command, config_dir)
            grid = claim.grid(cards[claim.command, name], own, repetitions, budget, overrides, everyones)
            drafts += drafts_of(grid, claim.command, config_dir=config_dir, root=root)
    return drafts


def budget_of(text: str | int | float) -> float:
    """How many times the usual budget ``2x``, ``0.5x`` or ``2`` is.

    Raises:
        ClipxError: it is no positive number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)x?", str(text).strip())
    found = float(match[1]) if match else 0.0
    if found <= 0:
        raise ClipxError(f"claims.budget={text} is no budget", hint="claims.budget=2x")
    return found


def chance(metric: str, results: Mapping[str, Any]) -> float | None:
    """What guessing gives on average, in [0, 1]; None where it is not known for this metric.

    Args:
        metric: ``top<k>``, ``mean_per_class``, ``*_recall@<k>``, ``*auroc``.
        results: of a run: ``classes``, or ``samples``, ``texts`` and ``pairs`` that belong together. The
            first of a random ranking is right with probability pairs / (samples x texts); k of them are at
            most k times as good.
    """
    if match := re.fullmatch(r"top(\d+)", metric):
        classes = results.get("classes")
        return min(1.0, int(match[1]) / classes) if classes else None
    if metric == "mean_per_class":
        return 1 / results["classes"] if results.get("classes") else None
    if re.search(r"(^|_)auroc$", metric):
        return 0.5
    if match := re.search(r"recall@(\d+)$", metric):
        counts = [results.get(name) for name in ("pairs", "samples", "texts")]
        pairs, samples, texts = ((value or 0) for value in counts)
        return min(1.0, int(match[1]) * pairs / (samples * texts)) if all(counts) else None
    return None


def verdict(low: float, high: float, margin: float, *, lower: bool = False) -> Verdict:
    """What an interval of the difference says about a claim that it is at least ``margin``.

    With ``lower`` the claim is that it is at most minus ``margin``.
    """
    if lower:
        low, high = -high, -low
    if low >= margin:
        return "holds"
    return "does not hold" if high < margin else "inconclusive"


def _scaled(value: int | float, budget: float) -> int | float:
    return max(1, round(value * budget)) if isinstance(value, int) else value * budget


def _keys_of(command: str, config_dir: str | os.PathLike[str] | None) -> set[str]:
    """Top-level keys of a command's own configuration: what it says itself, and its groups."""
    import yaml

    path = next(path for each in conf_dirs(config_dir) if (path := each / f"{command}.yaml").is_file())
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = {group for each in settings.pop("defaults", ()) if isinstance(each, dict) for group in each}
    return {*settings} | groups


def _has(settings: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True


def _short(value: Any) -> str:
    return str(value).replace(" ", "")

"""A search over a logarithmic grid that looks at few of its points: coarse first, then ever finer."""

from __future__ import annotations

from collections.abc import Callable

PER_DECADE = 8
_COARSEST = 2 * PER_DECADE
"""Steps between the points of the first round: two decades."""


def strengths(low: float = -6.0, high: float = 6.0) -> list[float]:
    """Powers of ten from ``10^low`` to ``10^high``, 8 a decade: 97 of them by default."""
    count = round((high - low) * PER_DECADE)
    return [10 ** (low + step / PER_DECADE) for step in range(count + 1)]


def coarse_to_fine(size: int, quality: Callable[[int], float], step: int = _COARSEST) -> int:
    """The place in ``[0, size)`` that a search finds best, of equals the lowest.

    Every ``step``-th place is tried; then the step is halved, and the two neighbours of the best place tried,
    until the step is 1. Places are told apart by index, never by a comparison of floats.

    Args:
        size: of the grid, 1 or more.
        quality: of a place, higher is better; asked once a place.
        step: of the first round.

    Source: Radford et al. 2021, appendix A.3.
    """
    known: dict[int, float] = {}

    def best(places: list[int]) -> int:
        for place in places:
            if place not in known:
                known[place] = quality(place)
        return max(sorted(known), key=known.__getitem__)

    found = best(list(range(0, size, step)))
    while step > 1:
        step = -(-step // 2)
        found = best([place for place in (found - step, found + step) if 0 <= place < size])
    return found

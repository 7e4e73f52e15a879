"""Medians and ratios. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, comb
from statistics import median
from typing import NamedTuple

_ONE_SIDE = 0.025  # of an interval of 95 %


class Summary(NamedTuple):
    """Of a series of times, in its unit."""

    runs: int
    least: float
    median: float
    p95: float


class Ratio(NamedTuple):
    """How much longer one series took than another.

    `of_medians` divides the medians; `of_pairs` is the median of the quotients of samples that
    were taken next to each other. They differ when the machine's speed changed during the run.
    """

    of_medians: float
    of_pairs: float


class Spread(NamedTuple):
    """A median, and the interval that holds the true one in 95 of 100 runs."""

    median: float
    low: float
    high: float


def summary(values: Sequence[float]) -> Summary:
    """The summary of at least one value."""
    return Summary(len(values), min(values), median(values), percentile(values, 95))


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one in between."""
    ordered = sorted(values)
    return ordered[max(0, ceil(percent / 100 * len(ordered)) - 1)]


def ratio(values: Sequence[float], reference: Sequence[float]) -> Ratio:
    """`values` against `reference`, taken in the same rounds; the shorter one sets the pairs.

    Raises ValueError when a series is empty or the reference took no time.
    """
    if not values or not reference or min(reference) <= 0:
        raise ValueError("a ratio needs samples, and a reference above zero")
    pairs = [a / b for a, b in zip(values, reference, strict=False)]
    return Ratio(median(values) / median(reference), median(pairs))


def pairs(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """The quotients of samples that were taken next to each other: their median, and how sure.

    The interval is by ranks: it assumes nothing of the quotients but that they are independent. Of
    fewer than 6 it holds all, and less often than it says. Raises ValueError as `ratio` does.
    """
    if not values or not reference or min(reference) <= 0:
        raise ValueError("a ratio needs samples, and a reference above zero")
    found = sorted(a / b for a, b in zip(values, reference, strict=False))
    left_out = _ranks_outside(len(found))
    return Spread(median(found), found[left_out], found[-1 - left_out])


def _ranks_outside(count: int) -> int:
    """How many of `count` sorted values lie on each side of the median's interval of 95 %."""
    outside, below = 0, comb(count, 0) / 2**count
    while outside + 1 <= (count - 1) // 2:
        below += comb(count, outside + 1) / 2**count
        if below > _ONE_SIDE:
            break
        outside += 1
    return outside

"""Medians and ratios. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import median
from typing import NamedTuple


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

"""Telling the cluster: what is wanted last, again after a failure, and not more often than that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Event

import pytest

from cni_plugin.agent.telling import Teller, Wanted
from cni_plugin.membership import Refusal
from cni_plugin.sources import Announcement, Readiness
from tests.support.fakesource import FakeSource
from tests.support.netns import wait_until

GOOD = Readiness(True, "PodwireReady", "pods have a network")
BAD = Readiness(False, "NoPodCIDR", "none")


class Slow(FakeSource):
    """Counts, and answers `say_ready` when `answers` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = Event()
        self.answers.set()
        self.asked = 0

    def say_ready(self, state: Readiness) -> None:
        self.asked += 1
        assert self.answers.wait(60)
        super().say_ready(state)


@pytest.fixture
def source() -> Slow:
    return Slow()


@pytest.fixture
def teller(source: Slow) -> Iterator[Teller]:
    failed: list[bool] = []
    found = Teller(source, logging.getLogger("test.telling"), lambda: failed.append(True))
    found.start()
    yield found
    source.answers.set()
    found.stop()
    assert not failed


def refusals(count: int) -> frozenset[Refusal]:
    return frozenset(Refusal(f"n{i:02}", "PodCIDROverlap", "they overlap") for i in range(count))


def test_what_is_wanted_is_told(teller: Teller, source: Slow) -> None:
    announced = Announcement("0a:58:0a:f4:00:01", None, "auto")
    teller.tell(Wanted(announced, GOOD, refusals(1)))
    wait_until(lambda: source.reports, 5, "a report")
    assert (source.announced, source.states) == ([announced], [GOOD])


def test_only_the_newest_is_told(teller: Teller, source: Slow) -> None:
    source.answers.clear()
    teller.tell(Wanted(None, BAD))
    wait_until(lambda: source.asked, 5, "the first question")
    between = Readiness(False, "NetworkNotReady", "soon over")
    for state in (between, BAD, GOOD):
        teller.tell(Wanted(None, state))
    source.answers.set()
    wait_until(lambda: source.states[-1:] == [GOOD], 5, "the newest")
    assert source.states == [BAD, GOOD]


def test_the_same_is_told_again(teller: Teller, source: Slow) -> None:
    """Somebody may have changed it there."""
    for times in (1, 2):
        teller.tell(Wanted(None, GOOD))
        wait_until(lambda times=times: source.asked == times, 5, "the question")


def test_what_fails_is_tried_in_its_time(teller: Teller, source: Slow) -> None:
    source.broken = "the API server says 500"
    teller.tell(Wanted(None, BAD))
    wait_until(lambda: source.asked == 1, 5, "the first question")
    wait_until(lambda: teller._retry_s, 5, "its failure")
    for _ in range(50):
        teller.tell(Wanted(None, BAD))
    assert source.asked <= 2
    source.broken = ""
    teller.tell(Wanted(None, GOOD))  # something new waits for nothing
    wait_until(lambda: source.states == [GOOD], 0.9, "the news")


def test_many_reports_come_by_and_by(teller: Teller, source: Slow) -> None:
    teller.tell(Wanted(None, GOOD, refusals(25)))
    wait_until(lambda: len(source.reports) == 10, 5, "the first")
    wait_until(lambda: len(source.reports) == 25, 10, "all of them")
    wait_until(lambda: not teller._retry_s, 5, "the end")
    asked = source.asked
    teller.tell(Wanted(None, GOOD, refusals(25)))
    wait_until(lambda: source.asked > asked, 5, "the question")
    assert len(source.reports) == 25


def test_a_mistake_of_ours_is_said(source: Slow) -> None:
    failed: list[bool] = []
    teller = Teller(source, logging.getLogger("test.telling"), lambda: failed.append(True))
    teller.start()
    source.say_ready = lambda state: 1 / 0  # type: ignore[assignment, return-value]
    teller.tell(Wanted(None, GOOD))
    wait_until(lambda: failed, 5, "the end")
    teller.stop()

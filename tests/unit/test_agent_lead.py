"""The lead among an agent's workers: cni_plugin/agent/lead.py."""

from __future__ import annotations

from threading import Thread

from cni_plugin.agent.lead import Lead


def _takers(lead: Lead, number: int) -> tuple[list[Thread], list[int]]:
    taken: list[int] = []

    def take(who: int) -> None:
        lead.take()
        taken.append(who)

    threads = [Thread(target=take, args=(who,), daemon=True) for who in range(number)]
    for thread in threads:
        thread.start()
    return threads, taken


def test_one_leads_until_its_term_ends() -> None:
    lead = Lead()
    term = lead.take()
    (follower,), taken = _takers(lead, 1)
    follower.join(0.1)
    assert taken == []
    term.end()
    follower.join(5)
    assert taken == [0]


def test_a_term_ends_once() -> None:
    """A second end must not let two lead at a time."""
    lead = Lead()
    term = lead.take()
    term.end()
    term.end()
    term.end_after(0)
    threads, taken = _takers(lead, 2)
    for thread in threads:
        thread.join(0.2)
    assert len(taken) == 1


def test_a_leader_that_is_held_up_is_relieved() -> None:
    lead = Lead()
    lead.take().begin()
    lead.term.end_after(60)
    (follower,), taken = _takers(lead, 1)
    follower.join(0.1)
    assert taken == []
    lead.term.end_after(0)
    follower.join(5)
    assert taken == [0]


def test_a_leader_without_a_client_is_not_relieved() -> None:
    lead = Lead()
    lead.take()
    lead.term.end_after(0)
    (follower,), taken = _takers(lead, 1)
    follower.join(0.1)
    assert taken == []

"""What a run measured, as data, and as JSON that a later report is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

FORMAT = 3


class Series(NamedTuple):
    """Samples of one thing, in the order they were taken.

    `scenario` and `what` name it ("pod", "ADD"), `contender` is who did it, `size` how many
    reservations, pods or calls at once there were (0 where that is no question). Times are ns;
    `cpu` may be empty.
    """

    scenario: str
    what: str
    contender: str
    wall: tuple[int, ...]
    cpu: tuple[int, ...] = ()
    size: int = 0


class Held(NamedTuple):
    """What an agent held after `pairs` of ADD and DEL: resident memory in KiB, open file
    descriptors, threads."""

    scenario: str
    pairs: int
    rss_kib: int
    fds: int
    threads: int


class Rates(NamedTuple):
    """How much went through in a second, in the order it was measured: `unit` is of one value.

    `scenario` and `what` name it ("same node", "TCP"), `contender` is whose it was, `size` how many
    pods with host ports there were (0 where that is no question).
    """

    scenario: str
    what: str
    contender: str
    unit: str
    values: tuple[float, ...]
    size: int = 0


class Amount(NamedTuple):
    """One number that is neither a time of many nor a rate: `unit` is the value's.

    `scenario` and `what` name it ("cluster", "RSS"), `contender` is whose it is, `size` how many
    nodes there were (0 where that is no question).
    """

    scenario: str
    what: str
    contender: str
    unit: str
    value: float
    size: int = 0


class Results(NamedTuple):
    """One run. `machine` and `contenders` are texts by name, `commands` shell text by title;
    `aliases` says what a page writes in place of a path of this machine."""

    machine: dict[str, str]
    contenders: dict[str, str]
    commands: dict[str, str]
    series: tuple[Series, ...]
    notes: tuple[str, ...] = ()
    aliases: dict[str, str] = {}  # noqa: RUF012
    held: tuple[Held, ...] = ()
    rates: tuple[Rates, ...] = ()
    amounts: tuple[Amount, ...] = ()

    def of(self, scenario: str) -> Iterator[Series]:
        return (series for series in self.series if series.scenario == scenario)

    def find(self, scenario: str, what: str, contender: str, size: int = 0) -> Series | None:
        wanted = (scenario, what, contender, size)
        return next(
            (s for s in self.series if (s.scenario, s.what, s.contender, s.size) == wanted), None
        )

    def rates_of(self, scenario: str) -> Iterator[Rates]:
        return (rates for rates in self.rates if rates.scenario == scenario)

    def rate(self, scenario: str, what: str, contender: str, size: int = 0) -> Rates | None:
        wanted = (scenario, what, contender, size)
        return next(
            (r for r in self.rates if (r.scenario, r.what, r.contender, r.size) == wanted), None
        )

    def amount(self, scenario: str, what: str, contender: str, size: int = 0) -> Amount | None:
        wanted = (scenario, what, contender, size)
        return next(
            (a for a in self.amounts if (a.scenario, a.what, a.contender, a.size) == wanted), None
        )


def encode(results: Results) -> str:
    document: dict[str, Any] = {"format": FORMAT, **results._asdict()}
    document["series"] = [series._asdict() for series in results.series]
    document["held"] = [held._asdict() for held in results.held]
    document["rates"] = [rates._asdict() for rates in results.rates]
    document["amounts"] = [amount._asdict() for amount in results.amounts]
    return json.dumps(document) + "\n"


def decode(text: str) -> Results:
    """What `encode` wrote. Raises ValueError for another format."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise ValueError(f"no results of a benchmark in format {FORMAT}")
    document["series"] = tuple(
        Series(**{**entry, "wall": tuple(entry["wall"]), "cpu": tuple(entry["cpu"])})
        for entry in document["series"]
    )
    document["held"] = tuple(Held(**entry) for entry in document["held"])
    document["rates"] = tuple(
        Rates(**{**entry, "values": tuple(entry["values"])}) for entry in document["rates"]
    )
    document["amounts"] = tuple(Amount(**entry) for entry in document.get("amounts", ()))
    document["notes"] = tuple(document["notes"])
    return Results(**document)

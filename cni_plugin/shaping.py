"""Bandwidth limits of a pod, decided without the kernel.

`parse` reads what the configuration asks for, `plan` says which token buckets that takes, `drift`
holds what the kernel has against the plan. The words are the reference's (bandwidth plugin): bits
and bits per second; `ingress` is traffic to the pod, `egress` traffic from it.

Traffic to the pod leaves the node through the host veth, whose queue is a token bucket (TBF). What
comes from the pod enters there, where nothing queues: it is led through a device of its own (ifb)
that has a queue.
"""

from __future__ import annotations

from collections.abc import Iterator

from cni_plugin import names
from cni_plugin.fields import Fields, invalid
from cni_plugin.spec import Attachment, CniError, Code
from cni_plugin.typed import NamedTuple

_LATENCY_MS = 25  # as the reference: how long a packet may wait, beside the time of a burst
_U32, _U64 = 2**32 - 1, 2**64 - 1
_MOST_BURST = _U32 * 8 - 1  # bits; the reference's limit
_LINK_HEADER = 18  # bytes of an Ethernet header with a VLAN tag
_NS_PER_S = 10**9
_TICK_SHIFT = 6  # the kernel tells times in 64 ns, PSCHED_SHIFT of include/net/pkt_sched.h
_SUBNETS = ("unshapedSubnets", "shapedSubnets")
_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst", *_SUBNETS)


class Limit(NamedTuple):
    """`rate` in bits per second, `burst` in bits."""

    rate: int
    burst: int


class Bandwidth(NamedTuple):
    """What a pod may use; None for no limit."""

    ingress: Limit | None = None
    egress: Limit | None = None


class Tbf(NamedTuple):
    """A token bucket: `rate` in bytes per second, `burst` (the bucket) and `limit` (the bucket and
    the queue) in bytes. See tc-tbf(8)."""

    rate: int
    burst: int
    limit: int


class Shaping(NamedTuple):
    """`ingress` is for the host veth; `egress` for the device `ifb`, which only that needs."""

    ifb: str
    ingress: Tbf | None
    egress: Tbf | None


# --- the configuration ------------------------------------------------------------------------


def parse(fields: Fields) -> Bandwidth:
    """The limits of a configuration: runtimeConfig.bandwidth, or bandwidth, or the reference
    plugin's keys at the top; the first of them that is there counts alone. Keys may be in any
    mixture of cases, as Go reads them: one that is not found would be no limit at all.

    Raises CniError 7 for values that can't be, 2 for a limit on some subnets only.
    """
    fields = Fields(fields.obj, fields.path, any_case=True)
    sections = [
        parent.child("bandwidth")
        for parent in (fields.child("runtimeConfig"), fields)
        if parent.has("bandwidth")
    ]
    if any(fields.has(key) for key in _KEYS):
        sections.append(fields)
    limits = [_bandwidth(section) for section in sections]  # one that doesn't count is read as well
    return limits[0] if limits else Bandwidth()


def _bandwidth(section: Fields) -> Bandwidth:
    for key in _SUBNETS:
        if any(section.items(key)):
            raise CniError(
                Code.UNSUPPORTED_FIELD,
                f"{section.at(key)}: podwire limits all of a pod's traffic or none",
                f"take {key} out; got {section.obj.get(key)}",
            )
    return Bandwidth(_limit(section, "ingress"), _limit(section, "egress"))


def _limit(section: Fields, direction: str) -> Limit | None:
    """The limit of one direction; 0 is none, as in the reference."""
    names_of = f"{direction}Rate", f"{direction}Burst"
    rate = section.integer(names_of[0], 0, _U64) or 0
    burst = section.integer(names_of[1], 0, _MOST_BURST) or 0
    if not rate and not burst:
        return None
    if not (rate and burst):
        missing, there = names_of if burst else reversed(names_of)
        raise invalid(
            section.at(missing),
            section.obj.get(missing),
            f"expected a number above 0 beside {there}",
            "a limit needs both, its rate in bits per second and its burst in bits",
        )
    if rate < 8:
        raise invalid(section.at(names_of[0]), rate, "expected 0 or at least 8 (bits per second)")
    return Limit(rate, burst)


# --- the plan ---------------------------------------------------------------------------------


def plan(bandwidth: Bandwidth, network: str, attachment: Attachment) -> Shaping | None:
    """What the kernel has to do for the limits; None for nothing."""
    if bandwidth == Bandwidth():
        return None
    ifb = names.ifb_name(network, attachment) if bandwidth.egress else ""
    return Shaping(ifb, _tbf(bandwidth.ingress), _tbf(bandwidth.egress))


def _tbf(limit: Limit | None) -> Tbf | None:
    return None if limit is None else _bucket(limit.rate // 8, limit.burst // 8)


def _bucket(rate: int, burst: int) -> Tbf:
    return Tbf(rate, burst, min(rate * _LATENCY_MS // 1000 + burst, _U32))


def for_mtu(tbf: Tbf, mtu: int) -> Tbf:
    """The bucket on a link with this MTU (bytes).

    One that is smaller than a packet would let none of that size pass, ever; a limit is on the
    rate, so it is made to hold one.
    """
    return tbf if tbf.burst >= mtu + _LINK_HEADER else _bucket(tbf.rate, mtu + _LINK_HEADER)


# --- CHECK ------------------------------------------------------------------------------------


class TbfState(NamedTuple):
    """A token bucket as the kernel shows it: `rate` in bytes per second, `limit` in bytes, and the
    time of a burst in ticks, of which it tells the lower 32 bits."""

    rate: int
    limit: int
    ticks: int


class Seen(NamedTuple):
    """What the kernel holds of an attachment's shaping. `host` and `ifb` are names.

    `mtu` is the host veth's, 0 when there is none; `redirect` and `ifb_index` are interface
    indexes, 0 for none: where traffic from the pod is led, and the ifb's own.
    """

    host: str
    mtu: int
    ingress: TbfState | None
    redirect: int
    ifb_index: int
    ifb_up: bool
    egress: TbfState | None


def drift(plan: Shaping, seen: Seen) -> Iterator[str]:
    """Each difference as a sentence that names the object. What others added is none."""
    if not seen.mtu:
        return  # that the host veth is missing is said elsewhere
    if plan.ingress is not None:
        yield from _tbf_drift(seen.host, for_mtu(plan.ingress, seen.mtu), seen.ingress)
    if plan.egress is None:
        return
    if not seen.ifb_index:
        yield f"the device {plan.ifb} that limits traffic from the pod does not exist"
        return
    if not seen.ifb_up:
        yield f"the device {plan.ifb} that limits traffic from the pod is down"
    if seen.redirect != seen.ifb_index:
        yield f"traffic from the pod is not led from {seen.host} to {plan.ifb}"
    yield from _tbf_drift(plan.ifb, for_mtu(plan.egress, seen.mtu), seen.egress)


def _tbf_drift(link: str, wanted: Tbf, seen: TbfState | None) -> Iterator[str]:
    if seen is None:
        yield f"the bandwidth limit on {link} is missing"
        return
    if seen.rate != wanted.rate:
        yield f"the bandwidth limit on {link} is {seen.rate * 8} bit/s, expected {wanted.rate * 8}"
    elif not _same_burst(wanted, seen):
        yield f"the burst or the queue on {link} is not that of {wanted.burst * 8} bits"


def _same_burst(wanted: Tbf, seen: TbfState) -> bool:
    """The limit says it in bytes; the ticks are what the bucket has, computed with 31 bits."""
    ticks = wanted.burst * _NS_PER_S // wanted.rate >> _TICK_SHIFT
    tolerance = (ticks >> 29) + 2
    distance = (ticks - seen.ticks + tolerance) & _U32
    return seen.limit == wanted.limit and distance <= 2 * tolerance

"""Why something of a cluster's member is not used, in words: both owners, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cni_plugin.claims import Claim, Local, unusable
from cni_plugin.fields import shown
from cni_plugin.sources import Member
from ipam import nodes

OVERLAP, INVALID, NO_ADDRESS = "PodCIDROverlap", "PodCIDRInvalid", "NoAddress"
VTEP = "VTEPRefused"


class Refusal(NamedTuple):
    """What of a member is not used: `reason` is one of the words above; `message` names both
    owners, what they claim, and what to do. `holder` is the node that came first, or the one in
    whose way it is, which alone may know; "" for none."""

    name: str
    reason: str
    message: str
    holder: str = ""


def of_member(member: Member, local: Local, own: str) -> Iterator[Refusal]:
    """What of a member can't be anybody's, or not for the networks of the node `own`."""
    name = member.name
    if not nodes.is_name(name):
        remedy = "rename it: letters, digits, '-', '_' and '.', a letter or digit first"
        yield Refusal(name, NO_ADDRESS, f"node {shown(name)}: no name for a node; {remedy}")
    if not member.addresses:
        remedy = "see why the node's agent (kubelet: --node-ip) reports none"
        yield Refusal(name, NO_ADDRESS, f"node {name} has no address; {remedy}")
    for address in member.addresses:
        if nodes.is_unreachable(address):
            what = f"node {name}: no other node can reach the address {address}"
            remedy = "give the node an address of its network"
            yield Refusal(name, NO_ADDRESS, f"{what}; {remedy}")
    for subnet in member.pod_cidrs:
        if reason := unusable(subnet, local):
            what = f"podCIDR {subnet} of node {name} {reason}"
            remedy = "choose another range for the cluster's pods"
            yield Refusal(name, INVALID, f"{what}; {remedy}", "" if unusable(subnet, ()) else own)
    if member.problem:
        yield Refusal(name, INVALID, f"node {name}: {member.problem}")


def of_claim(claim: Claim, met: Claim) -> Refusal:
    """Of a claim that met an earlier one."""
    name, other = claim.name, "itself" if met.name == claim.name else f"node {met.name}"
    first = "" if met.name == name else ", which came first"
    anew = f"register node {name} anew, so that it gets another, or remove {other} if it is gone"
    if claim.pods and met.pods:
        what = f"podCIDR {claim.held} of node {name} overlaps {met.held} of {other}{first}"
        return Refusal(name, OVERLAP, f"{what}; {anew}", met.name)
    if claim.pods:
        what = f"podCIDR {claim.held} of node {name} holds the address {met.held} of {other}{first}"
        remedy = "choose podCIDRs outside the nodes' networks"
        return Refusal(name, INVALID, f"{what}; {remedy}", met.name)
    what = f"the address {claim.held} of node {name} is that of {other}{first}"
    if met.pods:
        what = f"the address {claim.held} of node {name} is inside podCIDR {met.held} of {other}"
        what += first
    remedy = f"give node {name} another, or remove {other} if it is gone"
    return Refusal(name, NO_ADDRESS, f"{what}; {remedy}", met.name)


def of_mac(member: Member, why: str, holder: str = "") -> Refusal:
    """Of what a member says its VTEP's link-layer address is."""
    what = f"node {member.name} announces the VTEP address {shown(member.vtep_mac)}, {why}"
    usual = "until then it is taken for the one that follows from its name"
    remedy = "remove its annotation podwire.io/vtep-mac, or its lease's data, and restart its agent"
    return Refusal(member.name, VTEP, f"{what}; {remedy}; {usual}", holder)


def of_overlay(member: Member, why: str, holder: str = "") -> Refusal:
    """Of where a member wants the overlay to be sent to."""
    what = f"node {member.name} announces {member.overlay_address} for the overlay, {why}"
    remedy = "remove its annotation podwire.io/overlay-address, and restart its agent"
    usual = "until then the overlay is sent to the node's own address"
    return Refusal(member.name, VTEP, f"{what}; {remedy}; {usual}", holder)

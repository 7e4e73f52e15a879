"""Traffic control messages: queueing disciplines (qdiscs), filters and their actions.

The classes are tables in pyroute2's form, made from its base classes, for `codec`. pyroute2's own
`tcmsg` would take 40 ms to import, all kinds of qdiscs at once, and its TBF has no rate above 32
bits and no burst in bytes. tests/unit/test_shaping.py holds what both have byte for byte.

Source: include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h, tc_act/tc_mirred.h.
"""

from __future__ import annotations

from socket import htons

from cni_plugin.kernel import codec, messages
from cni_plugin.kernel.bare import load
from cni_plugin.kernel.messages import CHANGE, CREATE, DUMP, NLM_F_REQUEST, Message
from cni_plugin.shaping import Tbf, TbfState
from cni_plugin.typed import Any

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
ROOT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1  # TC_H_ROOT, TC_H_INGRESS: as `parent`
_INGRESS_HANDLE = 0xFFFF0000
_OUR_HANDLE = 0x70770000  # "7077:" in tc's words; the reference has 1:
_NLM_F_ECHO = 0x8  # before Linux 6.6 only what asks for an echo gets a qdisc that it asks for
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: no table of rates has to be looked at to find that out
_U32_TERMINAL = 1  # TC_U32_TERMINAL: what matches is not looked at further
_STOLEN, _EGRESS_REDIRECT = 4, 1  # TC_ACT_STOLEN, TCA_EGRESS_REDIR
_ETH_P_ALL = 3
_OUR_PRIORITY = 0x7077  # of our filter: deleting by it takes nobody else's
_FILTER_INFO = _OUR_PRIORITY << 16 | htons(_ETH_P_ALL)
_U32 = 2**32 - 1

_netlink: Any = load("pyroute2.netlink")


class _mirred(_netlink.nla):  # type: ignore[misc]  # noqa: N801  named as the kernel's
    nla_map = ((2, "TCA_MIRRED_PARMS", "parms"),)

    class parms(_netlink.nla):  # type: ignore[misc]  # noqa: N801
        fields = (
            ("index", "I"),
            ("capab", "I"),
            ("action", "i"),
            ("refcnt", "i"),
            ("bindcnt", "i"),
            ("eaction", "i"),
            ("ifindex", "I"),
        )


class _u32(_netlink.nla):  # type: ignore[misc]  # noqa: N801
    nla_map = ((5, "TCA_U32_SEL", "selector"), (7, "TCA_U32_ACT", "actions"))

    class selector(_netlink.nla):  # type: ignore[misc]  # noqa: N801
        """With one key; all zero it matches every packet, in whichever order of bytes."""

        fields = (
            ("flags", "B"),
            ("offshift", "B"),
            ("nkeys", "B"),
            ("pad", "B"),
            ("offmask", "H"),
            ("off", "H"),
            ("offoff", "h"),
            ("hoff", "h"),
            ("hmask", "I"),
            ("key_mask", "I"),
            ("key_val", "I"),
            ("key_off", "i"),
            ("key_offmask", "i"),
        )

    class actions(_netlink.nla):  # type: ignore[misc]  # noqa: N801
        nla_map = ((1, "TCA_ACT_PRIO_1", "action"),)

        class action(_netlink.nla):  # type: ignore[misc]  # noqa: N801
            nla_map = ((1, "TCA_ACT_KIND", "asciiz"), (2, "TCA_ACT_OPTIONS", "mirred"))
            mirred = _mirred


class _tbf(_netlink.nla):  # type: ignore[misc]  # noqa: N801
    nla_map = (
        (1, "TCA_TBF_PARMS", "parms"),
        (4, "TCA_TBF_RATE64", "uint64"),
        (6, "TCA_TBF_BURST", "uint32"),
    )

    class parms(_netlink.nla):  # type: ignore[misc]  # noqa: N801
        """struct tc_tbf_qopt: two of struct tc_ratespec, then three numbers."""

        fields = (
            ("rate_cell_log", "B"),
            ("rate_linklayer", "B"),
            ("rate_overhead", "H"),
            ("rate_cell_align", "h"),
            ("rate_mpu", "H"),
            ("rate", "I"),
            ("peak_cell_log", "B"),
            ("peak_linklayer", "B"),
            ("peak_overhead", "H"),
            ("peak_cell_align", "h"),
            ("peak_mpu", "H"),
            ("peak", "I"),
            ("limit", "I"),
            ("buffer", "I"),
            ("mtu", "I"),
        )


class tcmsg(_netlink.nlmsg):  # type: ignore[misc]  # noqa: N801
    """struct tcmsg, with the options of the kinds that podwire uses."""

    fields = (
        ("family", "B"),
        ("pad1", "B"),
        ("pad2", "H"),
        ("index", "i"),
        ("handle", "I"),
        ("parent", "I"),
        ("info", "I"),
    )
    nla_map = ((1, "TCA_KIND", "asciiz"), (2, "TCA_OPTIONS", "options"))

    @staticmethod
    def options(message: Any, *_: Any, **__: Any) -> Any:
        kinds = {"tbf": _tbf, "u32": _u32}
        return kinds.get(message.get_attr("TCA_KIND"), _netlink.nla.hex)


messages.REPLIES |= dict.fromkeys((RTM_NEWQDISC, RTM_NEWTFILTER), tcmsg)


def _message(value: dict[str, Any], kind: int, flags: int, what: str) -> Message:
    return Message(codec.encode(tcmsg, value), kind, flags, what)


# --- qdiscs -----------------------------------------------------------------------------------


def add_tbf(index: int, link: str, tbf: Tbf) -> Message:
    """A token bucket as the link's queue, where there is none but the default one."""
    parms = {
        "rate_linklayer": _ETHERNET,
        "rate": min(tbf.rate, _U32),
        "limit": tbf.limit,
    }
    attrs: list[tuple[str, Any]] = [("TCA_TBF_PARMS", parms), ("TCA_TBF_BURST", tbf.burst)]
    if tbf.rate > _U32:
        attrs.append(("TCA_TBF_RATE64", tbf.rate))
    value = {
        "index": index,
        "handle": _OUR_HANDLE,
        "parent": ROOT,
        "attrs": [("TCA_KIND", "tbf"), ("TCA_OPTIONS", {"attrs": attrs})],
    }
    return _message(value, RTM_NEWQDISC, CREATE, f"limit the rate of {link}")


def delete_tbf(index: int, link: str) -> Message:
    """Take the link's token bucket away, if it is ours; another's gives EINVAL."""
    value = {"index": index, "handle": _OUR_HANDLE, "parent": ROOT}
    return _message(value, RTM_DELQDISC, CHANGE, f"remove the rate limit of {link}")


def add_ingress(index: int, link: str) -> Message:
    """A place for filters on what comes in through the link."""
    value = {
        "index": index,
        "handle": _INGRESS_HANDLE,
        "parent": INGRESS,
        "attrs": [("TCA_KIND", "ingress")],
    }
    return _message(value, RTM_NEWQDISC, CREATE, f"add an ingress queue to {link}")


def delete_ingress(index: int, link: str) -> Message:
    value = {"index": index, "handle": _INGRESS_HANDLE, "parent": INGRESS}
    return _message(value, RTM_DELQDISC, CHANGE, f"remove the ingress queue of {link}")


def get_root(index: int, link: str) -> Message:
    """The link's queue. The kernel says nothing of the default one: not to be sent last."""
    value = {"index": index, "parent": ROOT}
    return _message(
        value, RTM_GETQDISC, NLM_F_REQUEST | _NLM_F_ECHO, f"look at the queue of {link}"
    )


def tbf_of(entry: Any) -> TbfState | None:
    """The token bucket that a decoded qdisc is; None when it is something else."""
    if entry is None or entry.get_attr("TCA_KIND") != "tbf":
        return None
    options = entry.get_attr("TCA_OPTIONS")
    parms = options.get_attr("TCA_TBF_PARMS")
    rate = options.get_attr("TCA_TBF_RATE64") or parms["rate"]
    return TbfState(rate, parms["limit"], parms["buffer"])


# --- filters ----------------------------------------------------------------------------------


def add_redirect(index: int, link: str, target: int, target_name: str) -> Message:
    """Lead all that comes in through the link to the queue of the link with index `target`."""
    parms = {"action": _STOLEN, "eaction": _EGRESS_REDIRECT, "ifindex": target}
    mirred = [
        ("TCA_ACT_KIND", "mirred"),
        ("TCA_ACT_OPTIONS", {"attrs": [("TCA_MIRRED_PARMS", parms)]}),
    ]
    options = [
        ("TCA_U32_SEL", {"flags": _U32_TERMINAL, "nkeys": 1}),
        ("TCA_U32_ACT", {"attrs": [("TCA_ACT_PRIO_1", {"attrs": mirred})]}),
    ]
    value = {
        "index": index,
        "parent": _INGRESS_HANDLE,
        "info": _FILTER_INFO,
        "attrs": [("TCA_KIND", "u32"), ("TCA_OPTIONS", {"attrs": options})],
    }
    return _message(value, RTM_NEWTFILTER, CREATE, f"lead traffic from {link} to {target_name}")


def delete_redirect(index: int, link: str) -> Message:
    """Lead what comes in through the link to nowhere else; other filters stay."""
    value = {
        "index": index,
        "parent": _INGRESS_HANDLE,
        "info": _FILTER_INFO,
        "attrs": [("TCA_KIND", "u32")],
    }
    return _message(value, RTM_DELTFILTER, CHANGE, f"stop leading traffic from {link}")


def dump_filters(index: int, link: str) -> Message:
    """The filters on what comes in through the link; none when it has no place for them."""
    value = {"index": index, "parent": _INGRESS_HANDLE}
    return _message(value, RTM_GETTFILTER, DUMP, f"list the filters of {link}")


def redirect_of(entry: Any) -> int:
    """The index of the link that a decoded filter leads all traffic to; 0 when it does not."""
    if entry.get_attr("TCA_KIND") != "u32":
        return 0
    options = entry.get_attr("TCA_OPTIONS")
    if options is None:
        return 0  # the priority alone; the filters of it are told one by one
    selector, actions = options.get_attr("TCA_U32_SEL"), options.get_attr("TCA_U32_ACT")
    if selector is None or actions is None or selector["key_mask"]:
        return 0
    action = actions.get_attr("TCA_ACT_PRIO_1")
    if action is None or action.get_attr("TCA_ACT_KIND") != "mirred":
        return 0
    parms = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    return int(parms["ifindex"]) if parms["eaction"] == _EGRESS_REDIRECT else 0

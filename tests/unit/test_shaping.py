"""Bandwidth limits: what the configuration may say, what becomes of it, and CHECK's eyes."""

from __future__ import annotations

import struct
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugin import names, shaping
from cni_plugin.fields import Fields
from cni_plugin.kernel import codec, tcmsg
from cni_plugin.kernel import shaping as in_kernel
from cni_plugin.shaping import Bandwidth, Limit, Seen, Shaping, Tbf, TbfState
from cni_plugin.spec import Attachment, CniError, Code

POD = Attachment("ctr", "eth0")
ALL = {"ingressRate": 8000, "ingressBurst": 80000, "egressRate": 16000, "egressBurst": 160000}
BOTH = Bandwidth(Limit(8000, 80000), Limit(16000, 160000))
INGRESS = {"ingressRate": 8000, "ingressBurst": 80000}
UNLIMITED_BURST = 2**32 - 1  # what containerd sends
MOST_BURST = 8 * (2**32 - 1) - 1


def parse(conf: Any) -> Bandwidth:
    return shaping.parse(Fields(conf))


# --- the configuration ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "wanted"),
    [
        ({}, Bandwidth()),
        ({"bandwidth": None, "runtimeConfig": None}, Bandwidth()),
        ({"bandwidth": {}}, Bandwidth()),
        ({"bandwidth": dict.fromkeys(ALL, 0)}, Bandwidth()),
        ({"bandwidth": ALL}, BOTH),
        ({"runtimeConfig": {"bandwidth": ALL}}, BOTH),
        (ALL, BOTH),
        ({"bandwidth": INGRESS}, Bandwidth(Limit(8000, 80000))),
        ({"bandwidth": {**ALL, "ingressRate": 0, "ingressBurst": None}}, Bandwidth(None, BOTH[1])),
        # runtimeConfig counts alone, not key by key.
        ({"bandwidth": ALL, "runtimeConfig": {"bandwidth": INGRESS}}, Bandwidth(BOTH[0])),
        ({"bandwidth": ALL, "runtimeConfig": {"bandwidth": {}}}, Bandwidth()),
        ({"bandwidth": ALL, "runtimeConfig": {"bandwidth": None}}, BOTH),
        ({"bandwidth": INGRESS, **ALL}, Bandwidth(BOTH[0])),
        ({"bandwidth": {**ALL, "unshapedSubnets": [], "shapedSubnets": None}}, BOTH),
        # Go reads keys in any mixture of cases.
        ({"bandwidth": {key.capitalize(): value for key, value in ALL.items()}}, BOTH),
        ({"Bandwidth": {key.lower(): value for key, value in ALL.items()}}, BOTH),
        ({key[0].upper() + key[1:]: value for key, value in ALL.items()}, BOTH),
        ({"bandwidth": {"IngressRate": 1, **INGRESS}}, Bandwidth(BOTH[0])),
        (
            {"bandwidth": {"egressRate": 1, "egressBurst": 1} | {"egressRate": 2**64 - 1}},
            Bandwidth(None, Limit(2**64 - 1, 1)),
        ),
        (
            {"bandwidth": {"egressRate": 8, "egressBurst": UNLIMITED_BURST}},
            Bandwidth(None, Limit(8, UNLIMITED_BURST)),
        ),
        (
            {"bandwidth": {"ingressRate": 8, "ingressBurst": MOST_BURST}},
            Bandwidth(Limit(8, MOST_BURST)),
        ),
    ],
)
def test_what_is_asked_for(conf: Any, wanted: Bandwidth) -> None:
    assert parse(conf) == wanted


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"ingressRate": 8000}, "ingressBurst"),
        ({"ingressRate": 8000, "ingressBurst": 0}, "ingressBurst"),
        ({"ingressBurst": 8000}, "ingressRate"),
        ({"egressRate": 8000}, "egressBurst"),
        ({"egressBurst": 8000, "egressRate": None}, "egressRate"),
        ({**INGRESS, "egressBurst": 1}, "egressRate"),
        ({**ALL, "ingressRate": -1}, "ingressRate"),
        ({**ALL, "ingressRate": 7}, "ingressRate"),
        ({**ALL, "egressRate": 2**64}, "egressRate"),
        ({**ALL, "egressBurst": -8}, "egressBurst"),
        ({**ALL, "egressBurst": MOST_BURST + 1}, "egressBurst"),
        ({**ALL, "ingressBurst": "1M"}, "ingressBurst"),
        ({**ALL, "ingressRate": 1e6}, "ingressRate"),
        ({**ALL, "ingressRate": True}, "ingressRate"),
        ({**ALL, "egressRate": [8000]}, "egressRate"),
        ({**ALL, "egressRate": {}}, "egressRate"),
        ({**ALL, "shapedSubnets": "10.0.0.0/8"}, "shapedSubnets"),
    ],
)
@pytest.mark.parametrize(
    ("path", "wrap"),
    [
        ("bandwidth.", lambda section: {"bandwidth": section}),
        ("runtimeConfig.bandwidth.", lambda section: {"runtimeConfig": {"bandwidth": section}}),
        ("", lambda section: section),
        # One that is overruled is wrong all the same.
        ("bandwidth.", lambda s: {"bandwidth": s, "runtimeConfig": {"bandwidth": ALL}}),
    ],
)
def test_impossible_values_are_refused_by_name(
    section: Any, key: str, path: str, wrap: Any
) -> None:
    with pytest.raises(CniError) as refused:
        parse(wrap(section))
    assert refused.value.code == Code.INVALID_CONFIG
    assert refused.value.msg.startswith(f"{path}{key}: expected ")


@pytest.mark.parametrize("value", [1, "10M", [ALL], True, 0])
@pytest.mark.parametrize("path", ["bandwidth", "runtimeConfig.bandwidth"])
def test_a_section_that_is_no_object_is_refused(path: str, value: Any) -> None:
    conf: Any = {"bandwidth": value}
    with pytest.raises(CniError, match=rf"^{path}: expected an object") as refused:
        parse({"runtimeConfig": conf} if "." in path else conf)
    assert refused.value.code == Code.INVALID_CONFIG


@pytest.mark.parametrize("key", ["unshapedSubnets", "shapedSubnets"])
@pytest.mark.parametrize("path", ["bandwidth.", ""])
def test_a_limit_on_some_subnets_is_not_supported(path: str, key: str) -> None:
    section = {**ALL, key: ["10.0.0.0/8"]}
    with pytest.raises(CniError) as refused:
        parse({"bandwidth": section} if path else section)
    assert refused.value.code == Code.UNSUPPORTED_FIELD
    assert refused.value.msg.startswith(f"{path}{key}: ")
    assert "10.0.0.0/8" in refused.value.details


# --- the plan ---------------------------------------------------------------------------------


def test_no_limit_is_no_plan() -> None:
    assert shaping.plan(Bandwidth(), "net", POD) is None


def test_traffic_to_the_pod_needs_no_ifb() -> None:
    # 1 Mbit/s: 125000 bytes a second, of which 3125 in 25 ms.
    limits = Bandwidth(ingress=Limit(1_000_000, 800_000))
    assert shaping.plan(limits, "net", POD) == Shaping("", Tbf(125000, 100000, 103125), None)


def test_traffic_from_the_pod_goes_through_its_ifb() -> None:
    made = shaping.plan(Bandwidth(egress=Limit(1_000_000, UNLIMITED_BURST)), "net", POD)
    name = names.ifb_name("net", POD)
    assert made == Shaping(name, None, Tbf(125000, 536870911, 536874036))
    assert len(name) == 15
    assert name.startswith("pwi")
    assert name != names.ifb_name("net", Attachment("ctr", "net1"))


def test_a_queue_that_no_number_holds_is_cut() -> None:
    made = shaping.plan(Bandwidth(Limit(2**64 - 1, MOST_BURST)), "net", POD)
    assert made is not None
    assert made.ingress == Tbf((2**64 - 1) // 8, 2**32 - 2, 2**32 - 1)


@pytest.mark.parametrize(("burst", "wanted"), [(1517, 1518), (1518, 1518), (0, 1518), (9000, 9000)])
def test_a_bucket_holds_one_packet_at_least(burst: int, wanted: int) -> None:
    assert shaping.for_mtu(Tbf(1000, burst, burst + 25), 1500) == Tbf(1000, wanted, wanted + 25)


# --- CHECK ------------------------------------------------------------------------------------

PLAN = Shaping("pwi0", Tbf(125000, 100000, 103125), Tbf(250000, 100000, 106250))
IN, OUT = TbfState(125000, 103125, 12500000), TbfState(250000, 106250, 6250000)
GOOD = Seen("veth0", 1500, IN, redirect=7, ifb_index=7, ifb_up=True, egress=OUT)


def test_what_was_planned_is_no_drift() -> None:
    assert list(shaping.drift(PLAN, GOOD)) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ingress": None}, ["limit on veth0 is missing"]),
        ({"ingress": IN._replace(rate=1)}, ["limit on veth0 is 8 bit/s, expected 1000000"]),
        ({"ingress": IN._replace(limit=1)}, ["the burst or the queue on veth0"]),
        ({"ingress": IN._replace(ticks=IN.ticks + 100)}, ["the burst or the queue on veth0"]),
        ({"ifb_index": 0}, ["the device pwi0 that limits traffic from the pod does not exist"]),
        ({"ifb_up": False}, ["pwi0 that limits traffic from the pod is down"]),
        ({"redirect": 0}, ["traffic from the pod is not led from veth0 to pwi0"]),
        ({"redirect": 8}, ["traffic from the pod is not led from veth0 to pwi0"]),
        ({"egress": None}, ["limit on pwi0 is missing"]),
        ({"egress": IN}, ["limit on pwi0 is 1000000 bit/s, expected 2000000"]),
        ({"ingress": None, "egress": None, "redirect": 0}, ["veth0", "veth0 to pwi0", "pwi0"]),
    ],
)
def test_each_difference_is_a_sentence(changed: Any, words: list[str]) -> None:
    found = list(shaping.drift(PLAN, GOOD._replace(**changed)))
    assert len(found) == len(words)
    assert all(part in sentence for part, sentence in zip(words, found, strict=True))


def test_what_was_not_planned_is_not_looked_at() -> None:
    nothing = Seen("veth0", 1500, None, 0, 0, False, None)
    assert list(shaping.drift(Shaping("", PLAN.ingress, None), nothing._replace(ingress=IN))) == []
    assert list(shaping.drift(PLAN._replace(ingress=None), GOOD._replace(ingress=None))) == []
    assert list(shaping.drift(Shaping("", None, None), GOOD)) == []


def test_a_veth_that_is_gone_is_told_by_others() -> None:
    assert list(shaping.drift(PLAN, Seen("veth0", 0, None, 0, 0, False, None))) == []


def test_a_bucket_made_to_hold_a_packet_is_no_drift() -> None:
    small = Shaping("", Tbf(125000, 100, 3225), None)
    seen = GOOD._replace(ingress=TbfState(125000, 1518 + 3125, 1518 * 8000 // 64))
    assert list(shaping.drift(small, seen)) == []
    assert list(shaping.drift(small, seen._replace(mtu=9000))) != []


def _ticks(rate: int, burst: int) -> int:
    """As the kernel computes and shows them (psched_ratecfg_precompute, psched_l2t_ns)."""
    factor, shift = 10**9, 0
    while not (factor // rate & 1 << 31 or factor & 1 << 63):
        factor, shift = factor << 1, shift + 1
    return ((burst * (factor // rate & 2**32 - 1)) >> shift) >> 6 & 2**32 - 1


@given(rate=st.integers(1, 2**33), burst=st.integers(1, 2**32 - 2))
def test_the_kernels_own_rounding_is_no_drift(rate: int, burst: int) -> None:
    tbf = shaping._bucket(rate, burst)
    seen = TbfState(rate, tbf.limit, _ticks(rate, burst))
    assert shaping._same_burst(tbf, seen)


@pytest.mark.parametrize("rate", [1000, 125_000, 12_500_000, 10**10])
@pytest.mark.parametrize("burst", [1518, 100_000, 536870911])
@pytest.mark.parametrize("percent", [-50, -1, 1, 50])
def test_a_bucket_of_another_size_is_drift(rate: int, burst: int, percent: int) -> None:
    """Also where the queue happens to be as long."""
    tbf = shaping._bucket(rate, burst)
    other = TbfState(rate, tbf.limit, _ticks(rate, burst + burst * percent // 100))
    enough = abs(burst * percent // 100) * 10**9 // rate > 2**7  # ticks are of 64 ns
    assert shaping._same_burst(tbf, other) is not enough


# --- messages ---------------------------------------------------------------------------------

RTNL = "pyroute2.netlink.rtnl.tcmsg"


def theirs(value: dict[str, Any]) -> bytes:
    """By pyroute2's own class and objects, without the flag that an attribute has attributes."""
    return codec.encode_by_pyroute2(import_module(RTNL).tcmsg, value)


def unflagged(data: bytes) -> bytes:
    """NLA_F_NESTED, which the kernel does not ask for here, is on mirred's options alone."""
    assert data.count(b"\x02\x80") == 1
    return data.replace(b"\x02\x80", b"\x02\x00")


OPTIONS = {
    "ingress": ("add_ingress", (3, "veth0")),
    "tbf": ("add_tbf", (3, "veth0", Tbf(125000, 100000, 103125))),
    "tbf, a large rate": ("add_tbf", (3, "veth0", Tbf(2**33, 100000, 103125))),
    "redirect": ("add_redirect", (3, "veth0", 4, "pwi0")),
    "delete_tbf": ("delete_tbf", (3, "veth0")),
    "delete_redirect": ("delete_redirect", (3, "veth0")),
    "delete_ingress": ("delete_ingress", (3, "veth0")),
    "get_root": ("get_root", (3, "veth0")),
    "dump_filters": ("dump_filters", (3, "veth0")),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_message_is_what_pyroute2_makes_of_our_tables(name: str, monkeypatch: Any) -> None:
    builder, arguments = OPTIONS[name]
    sent: list[Any] = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda *given: sent.append(given) or encode(*given))
    message = getattr(tcmsg, builder)(*arguments)
    [(cls, value)] = sent
    assert message.body == codec.encode_by_pyroute2(cls, value)
    assert codec.layout(cls).encode(value) == message.body  # and it was our own packing


def test_an_ingress_queue_is_pyroute2s() -> None:
    value = {
        "index": 3,
        "handle": 0xFFFF0000,
        "parent": 0xFFFFFFF1,
        "attrs": [("TCA_KIND", "ingress")],
    }
    assert tcmsg.add_ingress(3, "veth0").body == theirs(value)


def test_a_redirect_is_pyroute2s() -> None:
    options = import_module(f"{RTNL}.cls_u32").get_parameters(
        {
            "target": 0,
            "keys": ["0x0/0x0+0"],
            "action": {
                "kind": "mirred",
                "direction": "egress",
                "action": "redirect",
                "ifindex": 4,
            },
        }
    )
    attrs = dict(options["attrs"])
    wanted = [(name, attrs[name]) for name in ("TCA_U32_SEL", "TCA_U32_ACT")]
    value = {
        "index": 3,
        "parent": 0xFFFF0000,
        "info": 0x7077 << 16 | 0x0300,
        "attrs": [("TCA_KIND", "u32"), ("TCA_OPTIONS", {"attrs": wanted})],
    }
    assert tcmsg.add_redirect(3, "veth0", 4, "pwi0").body == unflagged(theirs(value))


def test_pyroute2_reads_a_bucket_as_it_was_meant() -> None:
    """Its encoder adds a table of rates, which the kernel no longer looks at."""
    body = tcmsg.add_tbf(3, "veth0", Tbf(125000, 100000, 103125)).body
    read = import_module(RTNL).tcmsg((16 + len(body)).to_bytes(4, "little") + bytes(12) + body)
    read.decode()
    fields = {name: read[name] for name in ("index", "handle", "parent", "info")}
    assert fields == {"index": 3, "handle": 0x70770000, "parent": 0xFFFFFFFF, "info": 0}
    assert read.get_attr("TCA_KIND") == "tbf"
    options = read.get_attr("TCA_OPTIONS")
    parms = options.get_attr("TCA_TBF_PARMS")
    told = {name: parms[name] for name, _ in parms.fields if parms[name]}
    assert told == {"rate": 125000, "rate___reserved": 1, "limit": 103125}
    # The burst in bytes, TCA_TBF_BURST, is in the kernel's headers and not in pyroute2's table.
    assert body.endswith(struct.pack("=HHI", 8, 6, 100000))


def test_what_the_kernel_says_of_others_is_read() -> None:
    def entry(kind: str, **options: Any) -> Any:
        attrs: list[Any] = [("TCA_KIND", kind)]
        attrs += [("TCA_OPTIONS", {"attrs": [*options.items()]})] if options else []
        return codec.decode(tcmsg.tcmsg, codec.encode(tcmsg.tcmsg, {"attrs": attrs}))

    def action(kind: str, eaction: int = 1) -> Any:
        parms = {"attrs": [("TCA_MIRRED_PARMS", {"eaction": eaction, "ifindex": 5})]}
        both = [("TCA_ACT_KIND", kind), ("TCA_ACT_OPTIONS", parms)]
        return {"attrs": [("TCA_ACT_PRIO_1", {"attrs": both})]}

    every, some = {"nkeys": 1}, {"nkeys": 1, "key_mask": 255}
    assert tcmsg.tbf_of(None) is None
    assert tcmsg.tbf_of(entry("noqueue")) is None
    assert tcmsg.redirect_of(entry("matchall")) == 0
    assert tcmsg.redirect_of(entry("u32")) == 0
    assert tcmsg.redirect_of(entry("u32", TCA_U32_SEL=every)) == 0
    assert tcmsg.redirect_of(entry("u32", TCA_U32_SEL=some, TCA_U32_ACT=action("mirred"))) == 0
    assert tcmsg.redirect_of(entry("u32", TCA_U32_SEL=every, TCA_U32_ACT=action("gact"))) == 0
    mirror = action("mirred", eaction=2)
    assert tcmsg.redirect_of(entry("u32", TCA_U32_SEL=every, TCA_U32_ACT=mirror)) == 0
    assert tcmsg.redirect_of(entry("u32", TCA_U32_SEL=every, TCA_U32_ACT=action("mirred"))) == 5


@pytest.mark.parametrize(
    ("said", "which"),
    [
        ("TC classifier not found", "cls_u32"),
        ("Failed to load TC action module", "act_mirred"),
        ("", "cls_u32 or act_mirred"),
    ],
)
def test_a_missing_module_is_named(said: str, which: str) -> None:
    text = in_kernel._missing(("cls_u32", "act_mirred"), said)
    assert f"the kernel lacks {which}:" in text

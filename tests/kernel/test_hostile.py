"""What an attack found: input and surroundings made to hang, spoil or confuse an ADD."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time

import pytest

_RESULT = '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24"}]}'


def folder(conf):
    return os.path.join(conf["ipam"]["dataDir"], conf["name"])


def test_nobody_without_rights_can_hold_up_an_add(plugin, node, topology, make_conf):
    """A process of the node's namespace locks what it can open: the namespace's own file."""
    holder = node.popen(
        *(sys.executable, "-c"),
        "import fcntl, os, time\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "fcntl.flock(open('/proc/self/ns/net'), fcntl.LOCK_EX); print('held', flush=True)\n"
        "try: open('/run/podwire/x', 'w'); print('open')\n"
        "except OSError: print('closed', flush=True)\n"
        "time.sleep(60)",
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        start = time.monotonic()
        assert plugin.add(make_conf(), topology.sandbox("pod")).ok
        assert time.monotonic() - start < 8
        assert holder.stdout.readline() == "closed\n"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize("command", ["ADD", "STATUS"])
def test_podwire_is_not_its_own_ipam_plugin(plugin, topology, make_conf, tmp_path, command):
    conf = make_conf(cniVersion="1.1.0", ipam={})
    refused = []
    for kind in ("podwire", "other-name"):
        conf["ipam"] = {"type": kind, "dataDir": str(tmp_path / "x")}
        (tmp_path / kind).unlink(missing_ok=True)
        (tmp_path / kind).symlink_to(plugin.executable)
        on = plugin.finding(str(tmp_path))
        if command == "ADD":
            refused.append(on.add(conf, topology.sandbox(f"pod-{kind}")))
        else:
            refused.append(on.status(conf))
    assert refused[0].code == 7
    assert refused[0].error["msg"].startswith("ipam.type:")
    assert "podwire itself" in refused[1].error["msg"] or refused[1].code == 7


@pytest.mark.parametrize("keys", [{"agent": 5}, {"agent": "x", "agentIdle": -1}, {"agentIdle": []}])
def test_a_pod_goes_away_whatever_is_said_about_agents(plugin, topology, make_conf, keys):
    """ADD refuses what DEL and GC must not mind."""
    conf, pod = make_conf(cniVersion="1.1.0"), topology.sandbox("pod")
    wrong = {**conf, **keys}
    assert plugin.add(wrong, pod).code == 7
    assert plugin.status(wrong).code == 7
    added = plugin.add(conf, pod)
    assert plugin.check(wrong, pod, prev=added.result).code == 7
    assert plugin.delete(wrong, pod).ok
    assert "eth0" not in pod.links()
    assert plugin.gc(wrong, []).ok


def test_hundreds_of_routes(plugin, topology, make_conf):
    routes = [{"dst": f"10.{100 + i // 250}.{i % 250}.0/24"} for i in range(600)]
    conf = make_conf(ipam={"ranges": [[{"subnet": "10.74.0.0/24"}]], "routes": routes})
    pod = topology.sandbox("pod")
    added = plugin.add(conf, pod)
    assert added.ok, added
    shown = pod.run("ip", "route").stdout.splitlines()
    assert len([line for line in shown if " via " in line]) >= 600
    assert plugin.delete(conf, pod).ok


def test_routes_of_hundreds_of_nodes_come_and_go(plugin, node, topology, make_conf, tmp_path):
    topology.cable({node: ("192.168.0.1/16",)}, ifname="eth9")
    inventory = tmp_path / "nodes.json"

    def write(count: int) -> None:
        nodes = [
            {
                "name": f"node-{i}",
                "addresses": [f"192.168.{i // 250}.{i % 250 + 1}"],
                "podCIDRs": [f"10.{100 + i // 250}.{i % 250}.0/24"],
            }
            for i in range(count)
        ]
        inventory.write_text(json.dumps({"nodes": nodes}))

    conf = make_conf(nodes=str(inventory), nodeName="node-0")
    conf["ipam"].pop("ranges", None)
    for count in (700, 2):
        write(count)
        pod = topology.sandbox(f"pod-{count}")
        assert plugin.add(conf, pod, cid=f"pod-{count}").ok
        routes = node.run("ip", "route", "show", "proto", "112").stdout.splitlines()
        assert len(routes) == count - 1


@pytest.mark.parametrize("kind", ["large", "device", "fifo"])
def test_a_strange_file_in_the_address_directory(plugin, topology, make_conf, kind):
    conf = make_conf(ipam={"ranges": [[{"subnet": "10.74.0.0/24"}]]})
    first, second = topology.sandbox("a"), topology.sandbox("b")
    assert plugin.add(conf, first, cid="a").ok
    path = os.path.join(folder(conf), "10.74.0.3")
    if kind == "large":
        with open(path, "wb") as file:
            file.truncate(64 << 20)
    elif kind == "device":
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    else:
        os.mkfifo(path)
    start = time.monotonic()
    added = plugin.add(conf, second, cid="b")
    assert added.ok, added
    assert added.addresses() == ["10.74.0.4/24"]
    assert plugin.delete(conf, second, cid="b").ok
    assert plugin.delete(conf, first, cid="a").ok
    assert time.monotonic() - start < 10
    assert os.path.lexists(path)


@pytest.mark.parametrize("way", ["process"], indirect=True)  # the limit is the process's
def test_a_short_write_reserves_nothing(plugin, topology, make_conf):
    conf = make_conf(ipam={"ranges": [[{"subnet": "10.74.0.0/24"}]]})
    pod = topology.sandbox("pod")
    cid = "c" * 64
    argv = [*plugin.node.prefix(), "/usr/bin/prlimit", "--fsize=20", plugin.executable]
    env = plugin.environ(
        "ADD", {"CNI_CONTAINERID": cid, "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path}
    )
    done = subprocess.run(
        argv, input=json.dumps(conf).encode(), env=env, capture_output=True, timeout=60
    )
    assert done.returncode != 0
    left = os.listdir(folder(conf)) if os.path.isdir(folder(conf)) else []
    assert not [name for name in left if name[0].isdigit()]


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize("damage", ["directory", "boot", "file", "link", "copy"])
def test_a_damaged_index_is_made_anew(plugin, topology, make_conf, damage):
    conf = make_conf(ipam={"ranges": [[{"subnet": "10.74.0.0/24"}]]})
    first, second = topology.sandbox("a"), topology.sandbox("b")
    assert plugin.add(conf, first, cid="a").ok
    index = os.path.join(conf["ipam"]["dataDir"], f".podwire-{conf['name']}")
    aside = index + ".aside"
    if damage == "directory":
        os.mkdir(os.path.join(index, "10.74.0.9"))
    elif damage == "boot":
        os.unlink(os.path.join(index, "boot"))
        open(os.path.join(index, "boot"), "w").close()
    else:
        os.rename(index, aside)
        if damage == "file":
            open(index, "w").close()
        elif damage == "link":
            os.symlink(aside, index)
        else:
            subprocess.run(["cp", "-rL", aside, index], check=False, capture_output=True)
    added = plugin.add(conf, second, cid="b")
    assert added.ok, added
    assert plugin.delete(conf, first, cid="a").ok
    assert plugin.delete(conf, second, cid="b").ok
    assert not [name for name in os.listdir(folder(conf)) if name[0].isdigit()]


@pytest.mark.one_case_by_agent
@pytest.mark.parametrize(
    "entry",
    [
        *({"subnet": s} for s in ("127.0.0.0/8", "224.0.0.0/4", "0.0.0.0/0", "fe80::/64")),
        *({"subnet": "10.1.0.0/24", "gateway": g} for g in ("127.0.0.1", "10.1.0.0", "0.0.0.0")),
        {"subnet": "10.1.0.0/24", "gateway": "10.1.0.255"},
    ],
)
def test_a_network_without_hosts_is_refused(plugin, topology, make_conf, entry):
    conf = make_conf(cniVersion="1.1.0", ipam={"ranges": [[entry]]})
    assert plugin.add(conf, topology.sandbox("pod")).code == 7
    assert plugin.status(conf).code == 7


def test_a_gateway_elsewhere_takes_no_network_with_it(plugin, node, topology, make_conf):
    conf = make_conf(ipam={"ranges": [[{"subnet": "10.1.0.0/24", "gateway": "8.8.8.8"}]]})
    assert plugin.add(conf, topology.sandbox("pod")).ok
    assert "8.8.8.8/32" in node.addresses("cni0")
    assert "8.8.8.0/24" not in node.run("ip", "route").stdout


@pytest.mark.parametrize(
    ("script", "limit"),
    [
        ("exec head -c 400000000 /dev/zero", 30),
        (
            f"sleep 30 & echo $! > ${{0%/*}}/pid; echo '{_RESULT}'",
            10,
        ),
    ],
    ids=["endless output", "child that keeps stdout"],
)
def test_a_delegate_that_does_not_end(plugin, topology, make_conf, tmp_path, script, limit):
    (tmp_path / "strange").write_text(f"#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n{script}\n")
    (tmp_path / "strange").chmod(0o755)
    conf = make_conf()
    conf["ipam"] = {"type": "strange"}
    on = plugin.finding(str(tmp_path))
    start = time.monotonic()
    added = on.add(conf, topology.sandbox("pod"))
    assert time.monotonic() - start < limit
    assert added.code == (105 if "zero" in script else 0)
    pid = tmp_path / "pid"
    if pid.exists():  # the child that the delegate left
        os.kill(int(pid.read_text()), 9)

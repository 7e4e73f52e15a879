"""What the nodes of a cluster in etcd agree on: the network, which the first of them writes."""

from __future__ import annotations

from cni_plugin.fields import invalid
from cni_plugin.sources.etcd_gateway import Gateway
from cni_plugin.sources.etcd_layout import Layout, Network
from cni_plugin.sources.etcd_messages import KeyValue, Write
from cni_plugin.sources.etcd_pools import Pool
from cni_plugin.spec import CniError, Code


def agreed(gateway: Gateway, layout: Layout, pools: tuple[Pool, ...]) -> Network:
    """The network as etcd has it; where etcd has none yet, these pools are written there.

    Raises CniError 7 when etcd's has other pools, or neither etcd nor the caller has any, and
    EtcdError when etcd can't be asked.
    """
    key = layout.config_key
    found = gateway.get(key).get(key)
    if found is None:
        config = layout.config(pools) if pools else None
        if config is None:
            raise CniError(
                Code.INVALID_CONFIG,
                f"etcd has no {key}",
                "give the first node --etcd-pool; a flannel network's is made by people",
            )
        gateway.swap({key: 0}, [Write(key, config)])
        found = gateway.get(key).get(key, KeyValue(key))
    network = layout.network(found.value)
    if pools and pools != network.pools:
        ours, theirs = (" and ".join(map(str, each)) for each in (pools, network.pools))
        raise invalid(
            "--etcd-pool",
            ours,
            f"expected {theirs}, as etcd's {key} has it for all nodes",
            "give this node the same, or none; to change it for all, end all agents, delete"
            " everything under the prefix, and start them anew",
        )
    return network

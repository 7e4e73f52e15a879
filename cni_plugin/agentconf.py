"""What a network configuration says about agents; `on_demand` and the client act on it."""

from __future__ import annotations

from cni_plugin.fields import Fields, invalid
from cni_plugin.typed import NamedTuple

ON_DEMAND = "auto"
AGENTS = ("", ON_DEMAND, "never")
_IDLE_S, _LONGEST_IDLE_S = 300, 86_400
_LONGEST_SOCKET_PATH = 107  # bytes; sun_path of unix(7), less the zero at its end


class AgentConf(NamedTuple):
    """`mode` is one of AGENTS, `socket` "" for the usual one; `idle_s`: seconds without a call
    after which an agent that was started on demand ends."""

    mode: str
    socket: str
    idle_s: int


def parse(fields: Fields) -> AgentConf:
    """What a configuration says about agents. Raises CniError 7 for a wrong value."""
    mode = fields.text("agent")
    if mode not in AGENTS:
        raise invalid("agent", mode, 'expected "auto", "never" or "" (an agent that runs serves)')
    path = fields.text("agentSocket")
    if path and not _is_socket_path(path):
        wanted = f"expected an absolute path of at most {_LONGEST_SOCKET_PATH} bytes"
        raise invalid("agentSocket", path, wanted)
    return AgentConf(mode, path, fields.integer("agentIdle", 1, _LONGEST_IDLE_S) or _IDLE_S)


def _is_socket_path(path: str) -> bool:
    try:
        encoded = path.encode()
    except UnicodeError:  # JSON can write halves of characters
        return False
    return path[0] == "/" and "\0" not in path and len(encoded) <= _LONGEST_SOCKET_PATH

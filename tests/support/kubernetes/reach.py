"""Who reaches whom, and with which source address: every pod answers with the address it sees.

A server is busybox's httpd with a CGI script, so pods and nodes need nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, ip_address

PORT = 80
NODE_PORT = 1080
_WHO = 'printf "Content-Type: text/plain\\r\\n\\r\\n$REMOTE_ADDR $(hostname)\\n"'
SERVE = (
    "mkdir -p /w/cgi-bin && printf '#!/bin/sh\\n%s\\n' '"
    + _WHO.replace("\\", "\\\\").replace("'", "'\\''")
    + f"' > /w/cgi-bin/who && chmod 755 /w/cgi-bin/who && echo serving && exec httpd -f -p {PORT}"
    " -h /w"
)
"""A script for a pod's shell: answers at port 80 from then on."""


def write_pages(folder: str) -> str:
    """The same for a node: a folder for httpd's option -h."""
    script = os.path.join(folder, "cgi-bin", "who")
    os.makedirs(os.path.dirname(script), exist_ok=True)
    with open(script, "w") as file:
        file.write(f"#!/bin/sh\n{_WHO}\n")
    os.chmod(script, 0o755)
    return folder


def script(targets: Iterable[tuple[str, int]], tries: int = 1) -> str:
    """Shell words that ask each (address, port), all at once, and print a line "address port
    answer" each. Between tries they wait a second: what refuses at once would have no time to come.
    """
    again = " ".join(map(str, range(1, tries)))
    ask = (
        "ask() { printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' |"
        " busybox timeout 4 busybox nc -w 3 $1 $2 2>/dev/null | busybox tail -n 1; }\n"
        "try() { r=$(ask $1 $2)\n"
        f'for i in {again}; do [ -n "$r" ] || {{ sleep 1; r=$(ask $1 $2); }}; done\n'
        'echo "$1 $2 $r"; }'
    )
    lines = [f"try {address} {port} &" for address, port in targets]
    return "\n".join([ask, *lines, "wait"])


class Answer:
    """What a server said: the client's address as it saw it, and its own host's name."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self.given = (bool(words) and words[0].startswith("[")) or len(words) == 2
        self.source = _plain(words[0]) if self.given else ""
        self.host = words[1] if len(words) > 1 else ""


def ask(
    run: Callable[[str], str], targets: Iterable[tuple[str, int]], tries: int = 1
) -> dict[tuple[str, int], Answer]:
    """The answers of all targets for whoever `run`, which runs a shell script, stands for."""
    answers = {}
    for line in run(script(targets, tries)).splitlines():
        address, port, said = [*line.split(" ", 2), "", ""][:3]
        answers[address, int(port)] = Answer(said)
    return answers


def _plain(address: str) -> str:
    """httpd has one socket for both families: [::ffff:10.244.0.2] is 10.244.0.2."""
    parsed = ip_address(address.strip("[]"))
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)

"""The MAC address that a pod is asked to have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cni_plugin.fields import Fields, invalid
from cni_plugin.spec import CniError, Code, Request

_MAC = re.compile(
    r"[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}"
)
_NO_SEPARATORS = str.maketrans("", "", ":-.")


def asked(request: Request) -> str:
    """The MAC asked for, "" for none.

    Precedence as in the reference: CNI_ARGS < args.cni < runtimeConfig.
    """
    fields = Fields(request.conf)
    chosen = ""
    for path, value in _macs(fields, request.cni_args):
        if not value:
            continue
        if not _MAC.fullmatch(value.lower()):
            raise _bad_mac(path, value, "expected a MAC address such as 02:42:0a:f4:00:05")
        digits = value.lower().translate(_NO_SEPARATORS)
        chosen = ":".join(digits[i : i + 2] for i in range(0, 12, 2))
        if int(chosen[:2], 16) & 1 or chosen == "00:00:00:00:00:00":
            raise _bad_mac(path, value, "expected a unicast MAC address")
    return chosen


def _macs(fields: Fields, cni_args: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "CNI_ARGS: MAC", cni_args.get("MAC", "")
    args = fields.child("args").child("cni")
    runtime = fields.child("runtimeConfig")
    yield args.at("mac"), args.text("mac")
    yield runtime.at("mac"), runtime.text("mac")


def _bad_mac(path: str, value: str, wanted: str) -> CniError:
    error = invalid(path, value, wanted)
    if path.startswith("CNI_ARGS"):
        error.code = Code.INVALID_ENVIRONMENT
    return error

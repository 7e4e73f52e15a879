"""Versions of the CNI specification, as far as the client answers for them itself.

One source for MicroPython and for CPython, as `client` is: it keeps to what both have.
"""

import json

_SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LARGEST_PARSED = 256 * 1024  # MicroPython reads JSON in quadratic time of its longest string
_JSON_SPACE = b" \t\r\n"


def reply(stdin: bytes) -> bytes | None:
    """The reply to VERSION; None where the configuration is not the one that runtimes send."""
    text = stdin.strip(_JSON_SPACE)
    version = b"1.1.0"
    if text:
        before, after = b'{"cniVersion":', b"}"
        quoted = text[len(before) : -len(after)].strip(_JSON_SPACE)
        version = quoted[1:-1]
        if (
            not text.startswith(before)
            or not text.endswith(after)
            or quoted != b'"' + version + b'"'
            or not _plain(version)
        ):
            return None
    supported = '", "'.join(_SUPPORTED).encode()
    return b'{"cniVersion": "' + version + b'", "supportedVersions": ["' + supported + b'"]}\n'


def _plain(version: bytes) -> bool:
    """Whether it holds nothing that JSON writes in another way; an empty one means the oldest."""
    return version != b"" and all(byte in b"0123456789." for byte in version)


def named_by(stdin: bytes) -> str:
    """The version of a configuration; the newest where it has none that podwire speaks."""
    if len(stdin) > LARGEST_PARSED:
        return _SUPPORTED[-1]
    try:
        version = json.loads(stdin)["cniVersion"]
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError):  # nested too deeply
        return _SUPPORTED[-1]
    return version if version in _SUPPORTED else _SUPPORTED[-1]

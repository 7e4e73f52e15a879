"""What `podwire probe` asks of the agent, for the probes of a container.

Without a file: does the agent reply? It is asked for VERSION, which depends on nothing. With a
network configuration list: could a pod be added now? It is asked for STATUS by each of podwire's
parts of the list, as a runtime would ask. Whether a cluster's API is there plays no part in either.

One source for MicroPython, where it is frozen into the executable and takes no CPython runtime, and
for CPython: it keeps to what both have.
"""

import json
import sys

if sys.implementation.name != "micropython":
    from cni_plugin import client, sysio, wire
    from cni_plugin.version import VERSION
else:
    import client  # type: ignore[import-not-found, no-redef]
    import sysio  # type: ignore[import-not-found, no-redef]
    import wire  # type: ignore[import-not-found, no-redef]
    from version import VERSION  # type: ignore[import-not-found, no-redef]

LARGEST_FILE = 256 * 1024  # MicroPython reads JSON in quadratic time of its longest string
_BIN_DIR = "/opt/cni/bin"  # where the plugins are that podwire delegates to, if CNI_PATH is silent
_TYPE = "podwire"
_STATUS_VERSION = "1.1.0"  # the first with STATUS; podwire serves it whatever the list says
_HOME = "/proc/self/ns/net"
_READ_ONLY_AT_ONCE = 0o4000  # O_RDONLY | O_NONBLOCK: a FIFO is read as empty, not waited for
_EPERM, _ENOENT, _EACCES, _ECONNREFUSED = 1, 2, 13, 111
# Codes of cni_plugin.spec.
_IO_FAILURE, _DECODE_FAILURE, _INVALID_CONFIG, _TRY_AGAIN_LATER = 5, 6, 7, 11
_PERMISSION_DENIED = 110
_SEE_ITS_LOG = "see the agent's log"


def probe(conflist: bytes | None) -> None:
    """Return when all is well. Raises client.FailureError, which says what is not."""
    environ = sysio.environ()
    if conflist is None:
        path = client.variable(environ, client.SOCKET_VARIABLE) or client.DEFAULT_SOCKET
        _ask(path, b"CNI_COMMAND=VERSION\0", b"")
        return
    folders = client.variable(environ, "CNI_PATH") or _BIN_DIR
    asked = b"CNI_COMMAND=STATUS\0CNI_PATH=" + folders.encode() + b"\0"
    for stdin in _podwires(conflist):
        path = client.socket_path(environ, stdin)
        if not path:
            raise client.FailureError(
                _INVALID_CONFIG,
                f'agent: {_shown(conflist)} says "{client.NEVER}", so no agent serves it',
                f"ask without one: podwire status --config {_shown(conflist)}",
            )
        _ask(path, asked, stdin)


# --- the agent ------------------------------------------------------------------------------------


def _ask(path: str, environ: bytes, stdin: bytes) -> None:
    """One call without a sandbox, of the agent at `path`. Raises client.FailureError: nobody is
    there, it does not reply, it declines, or what it replies is an error."""
    try:
        connection = sysio.connect(path, client.SILENCE_MS)
    except OSError as e:
        raise _unreached(path, e) from e
    try:
        client.refuse_stranger(connection, path)
        status, body = _exchange(connection, path, environ, stdin)
    finally:
        sysio.close(connection)
    if status != 0:
        raise _refused(path, body)


def _exchange(connection: int, path: str, environ: bytes, stdin: bytes) -> tuple[int, bytes]:
    """(exit status, stdout) of the call."""
    try:
        home = sysio.inode(_HOME)
        sysio.send(connection, wire.request(False, 0, home, VERSION, environ, stdin))
        return client.receive(connection, path, sysio.now() + client.TOTAL_MS)
    except OSError as e:
        msg = f"the agent at {path} takes no request: {_reason(e)}"
    except client.DeclinedError as e:
        msg = f"the agent at {path} declines: {_text(e.args[0])}"
    except client.FailureError as e:  # whose hint is for a call that changes something
        msg = e.msg
    raise client.FailureError(_TRY_AGAIN_LATER, msg, _SEE_ITS_LOG)


def _unreached(path: str, e: OSError) -> client.FailureError:
    if e.errno in (_ENOENT, _ECONNREFUSED):
        return client.FailureError(
            _TRY_AGAIN_LATER,
            f"no agent serves at {path}: {_reason(e)}",
            "start it: podwire agent; or see why it has ended in its log",
        )
    denied = e.errno in (_EPERM, _EACCES)
    return client.FailureError(
        _PERMISSION_DENIED if denied else _TRY_AGAIN_LATER,
        f"can't reach the agent at {path}: {_reason(e)}",
        "ask as the user of the agent, root" if denied else _SEE_ITS_LOG,
    )


def _refused(path: str, body: bytes) -> client.FailureError:
    """The error document of a reply."""
    try:
        document = json.loads(body)
        return client.FailureError(
            document["code"], str(document["msg"]), str(document.get("details", ""))
        )
    except (ValueError, KeyError, RuntimeError):
        return client.FailureError(
            _TRY_AGAIN_LATER, f"the agent at {path} gave no error that can be read", _SEE_ITS_LOG
        )


# --- the file -------------------------------------------------------------------------------------


def _podwires(path: bytes) -> list[bytes]:
    """What podwire's parts of the list at `path` get on stdin. Raises client.FailureError."""
    name = _shown(path)
    try:
        document = json.loads(_content(path))
    except (ValueError, RuntimeError) as e:  # the latter: nested too deeply
        raise client.FailureError(_DECODE_FAILURE, f"{name} is not JSON", "") from e
    plugins = document.get("plugins") if isinstance(document, dict) else None
    if not isinstance(plugins, list):
        raise client.FailureError(
            _INVALID_CONFIG,
            f"plugins: {name} has no such list",
            "name a network configuration list, such as /etc/cni/net.d/05-podwire.conflist",
        )
    found = []
    for plugin in plugins:
        if isinstance(plugin, dict) and plugin.get("type") == _TYPE:
            plugin.update({"name": document.get("name"), "cniVersion": _STATUS_VERSION})
            found.append(_escaped(json.dumps(plugin).encode()))
    if not found:
        raise client.FailureError(
            _INVALID_CONFIG,
            f"plugins: none of those in {name} is {_TYPE}",
            "name the file of podwire's network",
        )
    return found


def _escaped(text: bytes) -> bytes:
    """JSON as UTF-8. What it had as an escape and is half of a character (a surrogate, as Python
    writes U+1F600 in two), MicroPython makes three bytes of that are none: escaped again here."""
    first, *parts = text.split(b"\xed")
    found = [first]
    for part in parts:
        if part[0] < 0xA0:
            found.append(b"\xed" + part)
        else:
            found.append(("\\u%04x" % (0xD000 | (part[0] & 63) << 6 | part[1] & 63)).encode())
            found.append(part[2:])
    return b"".join(found)


def _content(path: bytes) -> bytes:
    try:
        fd = sysio.open_file(path, _READ_ONLY_AT_ONCE, 0)
        try:
            content = sysio.read(fd, LARGEST_FILE + 1)
        finally:
            sysio.close(fd)
    except OSError as e:
        raise client.FailureError(
            _PERMISSION_DENIED if e.errno in (_EPERM, _EACCES) else _IO_FAILURE,
            f"can't read {_shown(path)}: {_reason(e)}",
        ) from e
    if len(content) > LARGEST_FILE:
        raise client.FailureError(
            _INVALID_CONFIG,
            f"{_shown(path)} is larger than {LARGEST_FILE // 1024} KiB",
            f"podwire status --config {_shown(path)} reads it",
        )
    return content


# --- texts ----------------------------------------------------------------------------------------


def _shown(path: bytes) -> str:
    return _text(path) or '""'


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeError:
        return repr(data)


def _reason(e: OSError) -> str:
    return sysio.strerror(e.errno or 0)

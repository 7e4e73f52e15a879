"""The client: one call of the plugin becomes one round trip to the agent.

It moves bytes and decides nothing: environment, stdin and the sandbox's descriptor go to the
agent, its reply goes to stdout. VERSION it answers itself. Without an agent, or when the agent
declines, the caller does the same work in process. Never both: from the moment the request has been
sent, anything but a whole reply is error 11, and whether the work was done is the agent's secret.

One source for MicroPython, where it is frozen into the executable, and for CPython: it keeps to
what both have. There `sysio` is a module in C, here the one beside this file.
"""

import json
import sys

if sys.implementation.name != "micropython":
    from cni_plugin import cniversions, sysio, wire
    from cni_plugin.version import VERSION
else:
    import cniversions  # type: ignore[import-not-found, no-redef]
    import sysio  # type: ignore[import-not-found, no-redef]
    import wire  # type: ignore[import-not-found, no-redef]
    from version import VERSION  # type: ignore[import-not-found, no-redef]

DEFAULT_SOCKET = "/run/podwire/agent.sock"
SOCKET_VARIABLE = "PODWIRE_SOCKET"
NEVER = "never"  # the value of the key `agent` that keeps a network away from agents

STDIN_MS = 30_000  # a runtime has the configuration ready: it takes no time to write it
SILENCE_MS = 10_000  # an agent at work sends a heartbeat every half second
TOTAL_MS = 100_000  # with a last silence 110 s; a kubelet gives up after 120 or more

_IO_FAILURE, _TRY_AGAIN_LATER, _PERMISSION_DENIED = 5, 11, 110  # codes of cni_plugin.spec
_PIECE = 65536
_HOME = "/proc/self/ns/net"


class FailureError(Exception):
    """What becomes the error document of this call."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class DeclinedError(Exception):
    """The agent has begun nothing; its argument, if it has one, is why, in UTF-8."""


def call(ipam: bool) -> tuple[int | None, bytes]:
    """Serve the call of this process: (exit status, stdin).

    The status is None when the work has to be done in process: nothing was written or begun then,
    and `stdin` is what was read. `ipam`: the caller goes by the name podwire-ipam.
    """
    stdin = b""
    deadline = sysio.now() + TOTAL_MS
    try:
        stdin = read_stdin()
        environ = sysio.environ()
        if variable(environ, "CNI_COMMAND") == "VERSION":
            reply = cniversions.reply(stdin)
            if reply is not None:
                return say(reply, 0), stdin
        path = socket_path(environ, stdin)
        if not path:
            return None, stdin
        try:
            connection = sysio.connect(path, SILENCE_MS)
        except OSError:  # nobody is there
            return None, stdin
        try:
            return _round_trip(connection, path, ipam, environ, stdin, deadline), stdin
        except DeclinedError:
            return None, stdin
        finally:
            sysio.close(connection)
    except FailureError as e:
        return say(error_document(e, stdin), 1), stdin


def read_stdin() -> bytes:
    """The configuration: at most one byte more than one may have. Raises FailureError."""
    parts = []
    room = wire.LARGEST_STDIN
    deadline = sysio.now() + STDIN_MS
    try:
        while room > 0:
            if not sysio.wait(0, max(deadline - sysio.now(), 0)):
                raise FailureError(
                    _IO_FAILURE,
                    f"stdin did not end within {STDIN_MS // 1000} s",
                    "the runtime writes the network configuration there, and closes it",
                )
            part = sysio.read(0, min(room, _PIECE))
            if not part:
                break
            parts.append(part)
            room -= len(part)
    except OSError as e:
        raise FailureError(
            _IO_FAILURE, "can't read the network configuration from stdin: " + _reason(e)
        ) from e
    return b"".join(parts)


def variable(environ: bytes, name: str) -> str:
    """The value of an environment variable as text, "" when it is not set."""
    try:
        return _value(environ, name).decode()
    except UnicodeError:
        return "\ufffd"


def error_document(failure: FailureError, stdin: bytes) -> bytes:
    """The error document of the specification, section 5."""
    document = {"cniVersion": cniversions.named_by(stdin), "code": failure.code, "msg": failure.msg}
    if failure.details:
        document["details"] = failure.details
    return json.dumps(document).encode() + b"\n"


def _value(environ: bytes, name: str) -> bytes:
    key = b"\0" + name.encode() + b"="
    start = (b"\0" + environ).find(key)
    if start < 0:
        return b""
    start += len(key) - 1
    return environ[start : environ.find(b"\0", start)]


def socket_path(environ: bytes, stdin: bytes) -> str:
    """Where the agent listens; "" when this network is not served by agents.

    A configuration that can't be read is the agent's to refuse.
    """
    path = variable(environ, SOCKET_VARIABLE) or DEFAULT_SOCKET
    if b'"agent' not in stdin:
        return path
    if len(stdin) > cniversions.LARGEST_PARSED:
        return ""  # whatever it says, CPython will read it
    try:
        conf = json.loads(stdin)
    except (ValueError, RuntimeError):  # the latter: nested too deeply
        return path
    if not isinstance(conf, dict):
        return path
    if conf.get("agent") == NEVER:
        return ""
    configured = conf.get("agentSocket")
    return configured if isinstance(configured, str) and configured else path


def _round_trip(
    connection: int, path: str, ipam: bool, environ: bytes, stdin: bytes, deadline: int
) -> int:
    """Send the request, pass the reply on: the exit status. Raises DeclinedError, FailureError."""
    refuse_stranger(connection, path)
    netns, errno = _open_netns(_value(environ, "CNI_NETNS"))
    try:
        home = sysio.inode(_HOME)
        request = wire.request(ipam, errno, home, VERSION, environ, stdin)
        sysio.send(connection, request, netns)
    except OSError as e:  # an agent without the whole request has begun nothing
        raise DeclinedError from e
    finally:
        if netns >= 0:
            sysio.close(netns)
    status, body = receive(connection, path, deadline)
    status = say(body, status)
    if status == 0 and body and not _confirm(connection):
        complain("podwire: the result was taken too late: the agent has undone it\n")
        return 1
    return status


def refuse_stranger(connection: int, path: str) -> None:
    uid = sysio.peer_uid(connection)
    if uid not in (0, sysio.geteuid()):
        raise FailureError(
            _PERMISSION_DENIED,
            f"the agent at {path} runs as user {uid}, and is not trusted",
            "remove that socket; the agent runs as root",
        )


def _open_netns(path: bytes) -> tuple[int, int]:
    """(descriptor, 0), or (-1, errno); (-1, 0) when none was named."""
    if not path:
        return -1, 0
    try:
        return sysio.open_path(path), 0
    except OSError as e:
        return -1, e.errno or 5


def receive(connection: int, path: str, deadline: int) -> tuple[int, bytes]:
    """(exit status, stdout) of the call. Raises DeclinedError, FailureError."""
    try:
        data = b""
        while len(data) < wire.REPLY_BYTES:
            data = (data + _piece(connection, deadline)).lstrip(wire.HEARTBEAT)
        verdict, status, size = wire.reply_header(data[: wire.REPLY_BYTES])
        parts = [data[wire.REPLY_BYTES :]]
        missing = size - len(parts[0])
        while missing > 0:
            parts.append(_piece(connection, deadline))
            missing -= len(parts[-1])
        body = b"".join(parts)
    except OSError as e:
        raise _lost(path, _reason(e)) from e
    except (wire.WireError, MemoryError) as e:
        raise _lost(path, str(e)) from e
    if missing < 0 or not (verdict == wire.DECLINED or _is_document(status, body)):
        raise _lost(path, "not a reply to this call")
    if verdict == wire.DECLINED:
        raise DeclinedError(body)
    return status, body


def _piece(connection: int, deadline: int) -> bytes:
    """The next bytes from the agent. Raises OSError, WireError when there are none in time."""
    if sysio.now() > deadline:
        raise wire.WireError(f"no reply within {TOTAL_MS // 1000} s")
    try:
        part = sysio.read(connection, _PIECE)
    except OSError as e:
        if e.errno == 11:  # EAGAIN
            raise wire.WireError(f"no sign of life for {SILENCE_MS // 1000} s") from e
        raise
    if not part:
        raise wire.WireError("it ended before it replied")
    return part


def _is_document(status: int, body: bytes) -> bool:
    """Whether this can be the stdout of a plugin: nothing, or one JSON object."""
    if not body:
        return status == 0
    text = body.strip()
    return text[:1] == b"{" and text[-1:] == b"}"


def _lost(path: str, reason: str) -> FailureError:
    return FailureError(
        _TRY_AGAIN_LATER,
        f"the agent at {path} gave no valid reply: {reason}",
        "whether the call was served is unknown: repeat it, or call DEL; see the agent's log",
    )


def _confirm(connection: int) -> bool:
    """Tell the agent that the result has been delivered: without that it takes an ADD back.

    False when it did not wait any longer. One that has ended takes nothing back.
    """
    try:
        sysio.send(connection, wire.CONFIRMATION)
    except OSError:
        try:
            return sysio.read(connection, 1) != wire.UNDONE
        except OSError as e:
            return e.errno != 11  # EAGAIN: it lives, and what it does is unknown
    return True


def say(body: bytes, status: int) -> int:
    """Write the body to stdout: the exit status, 1 when that was not possible."""
    try:
        sysio.write(1, body)
    except OSError as e:
        complain(f"podwire: can't write the reply to stdout: {_reason(e)}\n")
        return 1
    return status


def complain(text: str) -> None:
    """To stderr; when there is none, nobody wants to know."""
    try:
        sysio.write(2, text.encode())
    except OSError:
        pass


def _reason(e: OSError) -> str:
    return sysio.strerror(e.errno or 0)

"""The executable: environment and stdin in, one JSON document out; or the tool.

Called with CNI_COMMAND it is the plugin; with arguments, the tool `podwire`; with neither it says
what it is, on stderr, and exits 0. Under the name `podwire-ipam` it is the IPAM plugin alone.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import EBADF
from typing import NoReturn

from cni_plugin import skel
from cni_plugin.spec import SUPPORTED_VERSIONS, CniError, Code
from cni_plugin.version import VERSION

_IPAM_NAME = "podwire-ipam"


def main() -> int:
    """Entry point of the console scripts."""
    closed = _fill_standard_fds()
    if os.environ.get("CNI_COMMAND"):
        gc.disable()  # the process ends before there is anything to collect
        signals: list[int] = []

        def read() -> bytes:
            stdin = _read_stdin()
            _defer_termination(signals)
            return stdin

        def write(reply: bytes) -> None:
            if reply and 1 in closed:
                raise OSError(EBADF, os.strerror(EBADF))
            _write_all(reply)

        ipam = _called_name() == _IPAM_NAME
        _leave(_answer(ipam, read, write, lambda: bool(signals)))
    if len(sys.argv) > 1 or "_PODWIRE_COMPLETE" in os.environ:  # click's shell completion
        try:
            from cni_plugin.cli import tool

            return tool()
        except KeyboardInterrupt:
            return 130
    _complain(_about(_called_name()))
    return 0


def _answer(
    ipam: bool,
    read: Callable[[], bytes],
    write: Callable[[bytes], None],
    interrupted: Callable[[], bool],
) -> int:
    """Serve the call of this process; its exit status."""
    status, reply = serve(os.environ, read, ipam, interrupted, write)
    try:
        write(reply)
    except OSError as e:
        _complain(f"podwire: can't write the reply to stdout: {e.strerror}\n")
        return 1
    return status


def serve(
    environ: Mapping[str, str],
    read: Callable[[], bytes],
    ipam: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
    deliver: Callable[[bytes], None] | None = None,
) -> tuple[int, bytes]:
    """One call of the plugin: exit status and bytes for stdout. `read` is called for stdin.

    With `deliver`, the result of an ADD goes there, and is undone when that raises OSError.

    Whatever goes wrong becomes one CNI error document. An ADD asks `interrupted` between its
    steps, and is undone when that is true.
    """
    stdin = b""
    try:
        stdin = read()
        if environ.get("CNI_COMMAND") == "VERSION":
            return 0, skel.encode_version(stdin)
        request = skel.parse_request(environ, stdin)
        from cni_plugin import commands
        from cni_plugin.node import Node

        node = Node(environ, interrupted, deliver)
        try:
            run = commands.run_ipam if ipam else commands.run
            return 0, run(request, node)
        finally:
            node.close()
    except CniError as e:
        failure = e
    except OSError as e:
        failure = CniError(Code.IO_FAILURE, f"system call failed: {e}")
    except Exception as e:  # noqa: BLE001  the boundary: a bug is one error document as well
        failure = _internal(e)
    return 1, skel.encode_error(failure, skel.error_version(stdin))


def _internal(e: Exception) -> CniError:
    from traceback import format_exc

    _complain(format_exc())
    return CniError(
        Code.INTERNAL,
        f"internal error: {type(e).__name__}: {e}",
        "this is a bug of podwire: please report it with the traceback on stderr",
    )


def _read_stdin() -> bytes:
    """stdin, up to just more than a configuration may have; closed counts as empty."""
    parts = []
    room = skel.MAX_CONFIG_BYTES + 1
    while room > 0:
        try:
            part = os.read(0, min(room, 1 << 20))
        except OSError as e:
            raise CniError(
                Code.IO_FAILURE, f"can't read the network configuration from stdin: {e.strerror}"
            ) from e
        if not part:
            break
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _complain(text: str) -> None:
    """To stderr, by its number: Python has no `sys.stderr` when the caller had closed it."""
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _fill_standard_fds() -> set[int]:
    """A caller may have closed stdin, stdout or stderr: nothing else must get their numbers.

    Those that were closed are returned.
    """
    closed = set()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            closed.add(number)
    return closed


def _defer_termination(signals: list[int]) -> None:
    """From now on SIGTERM and SIGINT are only noted in `signals`.

    An exception at an arbitrary instruction would fall between a change and the registration of
    its undo; noted, it is honoured between two steps. Executed delegates get the default back.
    """
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: signals.append(received))


def _leave(status: int) -> NoReturn:
    """End without taking the interpreter apart, which takes as long as starting it did."""
    atexit._run_exitfuncs()
    os._exit(status)


def _called_name() -> str:
    return os.path.basename(sys.argv[0])


def _about(name: str) -> str:
    what = "IPAM plugin, host-local" if name == _IPAM_NAME else "pod networking for Kubernetes"
    return (
        f"{name} {VERSION}: CNI plugin, {what}\n"
        f"CNI protocol versions supported: {', '.join(SUPPORTED_VERSIONS)}\n"
        + ("" if name == _IPAM_NAME else "The tool: podwire --help\n")
    )


if __name__ == "__main__":
    sys.exit(main())

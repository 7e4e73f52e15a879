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
from typing import NoReturn

from cni_plugin import skel
from cni_plugin.spec import SUPPORTED_VERSIONS, CniError, Code
from cni_plugin.version import VERSION

_IPAM_NAME = "podwire-ipam"


def main() -> int:
    """Entry point of the console scripts."""
    _fill_standard_fds()
    if os.environ.get("CNI_COMMAND"):
        gc.disable()  # the process ends before there is anything to collect
        signals: list[int] = []

        def read() -> bytes:
            stdin = _read_stdin()
            _defer_termination(signals)
            return stdin

        status, reply = serve(
            os.environ, read, ipam=_called_name() == _IPAM_NAME, interrupted=lambda: bool(signals)
        )
        _leave(status if _write_all(reply) else 1)
    if len(sys.argv) > 1 or "_PODWIRE_COMPLETE" in os.environ:  # click's shell completion
        try:
            from cni_plugin.cli import tool

            return tool()
        except KeyboardInterrupt:
            return 130
    sys.stderr.write(_about(_called_name()))
    return 0


def serve(
    environ: Mapping[str, str],
    read: Callable[[], bytes],
    ipam: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[int, bytes]:
    """One call of the plugin: exit status and bytes for stdout. `read` is called for stdin.

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

        node = Node(environ, interrupted)
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
    from traceback import print_exc

    print_exc()
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


def _write_all(data: bytes) -> bool:
    """Write to stdout; False when nobody reads it any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except OSError as e:
            sys.stderr.write(f"podwire: can't write the reply to stdout: {e.strerror}\n")
            return False
    return True


def _fill_standard_fds() -> None:
    """A caller may have closed stdin, stdout or stderr: nothing else must get their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


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
    sys.stderr.flush()
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

"""The executable: environment and stdin in, one JSON document out; or the tool.

Called with CNI_COMMAND it is the plugin: the agent serves the call, or, where none does, this
process. With arguments it is the tool `podwire`; with neither it says what it is, on stderr, and
exits 0. Under the name `podwire-ipam` it is the IPAM plugin alone.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

from cni_plugin import client
from cni_plugin.dispatch import complain, serve
from cni_plugin.spec import SUPPORTED_VERSIONS
from cni_plugin.typed import NoReturn
from cni_plugin.version import VERSION

_IPAM_NAME = "podwire-ipam"


def main(dial: bool = True) -> int:
    """Entry point of the console scripts. Without `dial` no agent is asked: the executable's
    client has done that before."""
    _fill_standard_fds()
    if os.environ.get("CNI_COMMAND"):
        gc.disable()  # the process ends before there is anything to collect
        ipam = _called_name() == _IPAM_NAME
        status, stdin = client.call(ipam) if dial else (None, None)
        _leave(_answer(ipam, stdin) if status is None else status)
    if len(sys.argv) > 1 or "_PODWIRE_COMPLETE" in os.environ:  # click's shell completion
        try:
            from cni_plugin.cli import tool

            return tool()
        except KeyboardInterrupt:
            return 130
    complain(_about(_called_name()))
    return 0


def _answer(ipam: bool, stdin: bytes | None) -> int:
    """Serve the call in this process; its exit status. `stdin` is what has been read of it."""
    signals: list[int] = []
    try:
        given = client.read_stdin() if stdin is None else stdin
    except client.FailureError as e:
        return client.say(client.error_document(e, b""), 1)
    _defer_termination(signals)
    status, reply = serve(os.environ, lambda: given, ipam, lambda: bool(signals), _write_all)
    try:
        _write_all(reply)
    except OSError as e:
        complain(f"podwire: can't write the reply to stdout: {e.strerror}\n")
        return 1
    if status == 0 and not signals and os.environ["CNI_COMMAND"] == "ADD" and b'"auto"' in given:
        from cni_plugin import on_demand

        on_demand.start_if_wanted(given, os.environ)
    return status


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _fill_standard_fds() -> None:
    """A caller may have closed stdin, stdout or stderr: nothing else must get their numbers.

    To what takes stdout's place nothing can be written, as the caller would expect.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)


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

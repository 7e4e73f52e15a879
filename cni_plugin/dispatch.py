"""The boundary: one call of the plugin in, exit status and one document out, whatever happens.

Serves a process of its own and an agent alike. Typed errors pass through everything below and are
encoded here, once; a bug is one error document as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from cni_plugin import skel
from cni_plugin.spec import CniError, Code
from cni_plugin.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_plugin.node import Resident


def serve(
    environ: Mapping[str, str],
    read: Callable[[], bytes],
    ipam: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
    deliver: Callable[[bytes], None] | None = None,
    resident: Resident | None = None,
) -> tuple[int, bytes]:
    """One call of the plugin: exit status and bytes for stdout. `read` is called for stdin.

    With `deliver`, the result of an ADD goes there, and is undone when that raises OSError.
    An ADD asks `interrupted` between its steps, and is undone when that is true. `resident` is
    what an agent lends to the call.
    """
    stdin = b""
    try:
        stdin = read()
        if environ.get("CNI_COMMAND") == "VERSION":
            return 0, skel.encode_version(stdin)
        request = skel.parse_request(environ, stdin)
        from cni_plugin import commands
        from cni_plugin.node import Node

        node = Node(environ, interrupted, deliver, resident)
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


def complain(text: str) -> None:
    """To stderr, by its number: Python has no `sys.stderr` when the caller had closed it."""
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _internal(e: Exception) -> CniError:
    from traceback import format_exc

    complain(format_exc())
    return CniError(
        Code.INTERNAL,
        f"internal error: {type(e).__name__}: {e}",
        "this is a bug of podwire: please report it with the traceback on stderr",
    )

"""What the executable does first; frozen into it, and run by launcher/port/main.c.

A call of the plugin goes to the client, and `podwire probe` to its module. What the client can't
serve, and everything else, is done by the CPython runtime, which lies behind this in the same file:
`unpack` executes it in place of this process.

Rule: whatever goes wrong with CNI_COMMAND set becomes one error document on stdout.
This module keeps to what MicroPython and CPython share.
"""

import sys

if sys.implementation.name != "micropython":
    from cni_plugin import client, probing, sysio
else:
    import client  # type: ignore[import-not-found, no-redef]
    import probing  # type: ignore[import-not-found, no-redef]
    import sysio  # type: ignore[import-not-found, no-redef]

_IPAM_NAME = b"podwire-ipam"
_EPERM, _EACCES = 1, 13
_IO_FAILURE, _PERMISSION_DENIED, _INTERNAL = 5, 110, 199  # codes of cni_plugin.spec
_LAST_RESORT = b'{"cniVersion": "1.0.0", "code": 199, "msg": "internal error: out of memory"}\n'


def run(argv: list[bytes]) -> int:
    """Serve the call of this process: the exit status."""
    plugin = True  # what can't be told is taken for a call of the plugin
    stdin = b""
    try:
        plugin = client.variable(sysio.environ(), "CNI_COMMAND") != ""
        if not plugin:
            if _is_probe(argv):
                probing.probe(argv[2] if len(argv) > 2 else None)
                return 0
            _execute(argv, None)
        name = argv[0].split(b"/")[-1] if argv else b""
        status, stdin = client.call(name == _IPAM_NAME)
        if status is not None:
            return status
        _execute(argv, stdin)
    except BaseException as e:  # noqa: BLE001  the boundary: one error document, whatever it was
        return _fail(e, plugin, stdin)
    return 0  # not reached: execute has replaced this process, or raised


def _is_probe(argv: list[bytes]) -> bool:
    """Whether it is `probe` or `probe FILE`; for --help and for mistakes there is the runtime."""
    return argv[1:2] == [b"probe"] and len(argv) <= 3 and not argv[-1].startswith(b"-")


def _execute(argv: list[bytes], stdin: bytes | None) -> None:
    if sys.implementation.name != "micropython":  # here: a call that an agent serves needs neither
        from launcher import unpack
    else:
        import unpack  # type: ignore[import-not-found, no-redef]
    try:
        unpack.execute(argv, stdin)
    except unpack.FailureError as e:
        raise client.FailureError(e.code, e.msg, e.details) from e


def _fail(e: BaseException, plugin: bool, stdin: bytes) -> int:
    try:
        failure = _failure(e)
        if plugin:
            sysio.write(1, client.error_document(failure, stdin))
        else:
            hint = f"hint: {failure.details}\n" if failure.details else ""
            client.complain(f"error {failure.code}: {failure.msg}\n{hint}")
    except OSError as unwritten:
        client.complain(f"podwire: can't write the reply to stdout: {_reason(unwritten)}\n")
    except MemoryError:
        sysio.write(1 if plugin else 2, _LAST_RESORT)
    return 1


def _failure(e: BaseException) -> client.FailureError:
    if isinstance(e, client.FailureError):
        return e
    if isinstance(e, OSError):
        code = _PERMISSION_DENIED if e.errno in (_EPERM, _EACCES) else _IO_FAILURE
        return client.FailureError(code, f"can't start podwire's runtime: {_reason(e)}")
    _print_traceback(e)
    return client.FailureError(
        _INTERNAL,
        f"internal error: {type(e).__name__}: {e}",
        "this is a bug of podwire: please report it with the traceback on stderr",
    )


def _print_traceback(e: BaseException) -> None:
    if sys.implementation.name != "micropython":
        sys.excepthook(type(e), e, e.__traceback__)
    else:
        sys.print_exception(e)  # type: ignore[attr-defined]


def _reason(e: OSError) -> str:
    return sysio.strerror(e.errno or 0)

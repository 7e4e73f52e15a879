"""Execute the CPython runtime that lies at the end of the executable; unpack it first, once.

One source for MicroPython, where it is frozen into the executable, and for CPython, where it is
tested: it keeps to what both have. launcher/archive.py reads the archive, cni_plugin/runtimes.py
unpacks it; this chooses the folder and starts the interpreter.
"""

import sys

if sys.implementation.name != "micropython":
    from cni_plugin import runtimefolder, runtimes, sysio
    from launcher.archive import Archive, DamagedError
else:
    import runtimefolder  # type: ignore[import-not-found, no-redef]
    import runtimes  # type: ignore[import-not-found, no-redef]
    import sysio  # type: ignore[import-not-found, no-redef]
    from archive import Archive, DamagedError  # type: ignore[import-not-found, no-redef]

SELF = "/proc/self/exe"
VARIABLE = "PODWIRE_RUNTIME"

_O_RDONLY = 0
_INVALID_ENVIRONMENT, _IO_FAILURE, _TRY_AGAIN_LATER, _PERMISSION_DENIED = 4, 5, 11, 110
_DELETED = " (deleted)"
_LIST_SIGNS = ":;$\n"  # ld.so takes the folders of libraries as a list, and expands $ORIGIN

# What the dynamic linker and the C library read before our code runs. Meant for the node's own,
# it would make ours load libraries of another C library, or another locale's data. It is handed
# to launcher/entry.py, which puts it back for the programs that podwire executes.
_WITHHELD = (b"LD_", b"LC_ALL=", b"LOCPATH=", b"GCONV_PATH=", b"GLIBC_TUNABLES=", b"MALLOC_")
# With LC_ALL the interpreter leaves LC_CTYPE alone, and the locale C needs no file.
_ADDED = b"LC_ALL=C\0"


class FailureError(Exception):
    """Why the runtime can't be executed; `code` is the CNI error code."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


def execute(argv: list[bytes], stdin: bytes | None, executable: str = SELF) -> None:
    """Execute the runtime in place of this process, with `argv` as it was called.

    `stdin`: what has been read from there; None when it has not been read. Raises FailureError,
    OSError.
    """
    environ = sysio.environ()
    path = _path_of(executable)
    fd = sysio.open_file(executable, _O_RDONLY, 0)
    try:
        archive = Archive(fd)
        folder, held = prepare(archive, environ)
    except DamagedError as e:
        raise FailureError(
            _IO_FAILURE,
            path + " is damaged: it does not hold podwire's runtime as it was built",
            "copy the file anew",
        ) from e
    finally:
        sysio.close(fd)
    if stdin is not None:
        _give_stdin(stdin)
    sysio.inherit(held)
    runtime = folder + "/" + runtimes.name_of(archive.digest)
    passed, withheld = _split(environ)
    arguments = _interpreter(runtime, path, held)
    arguments.append(str(len(withheld)))
    arguments.extend(withheld)
    arguments.extend(argv)
    try:
        sysio.execve(arguments[0], arguments, passed)
    except OSError as e:
        raise FailureError(
            _IO_FAILURE,
            "can't execute " + str(arguments[0]) + ": " + sysio.strerror(e.errno or 0),
            "if somebody changed it, remove " + runtime + ": it is unpacked anew",
        ) from e


def _path_of(executable: str) -> str:
    """Where the executable is; after an upgrade, where its successor is."""
    path = sysio.readlink(executable) if executable == SELF else executable
    return path[: -len(_DELETED)] if path.endswith(_DELETED) else path


def prepare(archive: Archive, environ: bytes) -> tuple[str, int]:
    """Unpack into the first folder that can be used: that folder, and the descriptor of the
    runtime's lock. Raises FailureError, DamagedError."""
    reasons = []
    for folder in _folders(environ):
        try:
            return folder, runtimes.prepare(folder, archive)
        except runtimes.UnusableError as e:
            reasons.append(folder + ": " + str(e))
        except OSError as e:
            reasons.append(folder + ": " + sysio.strerror(e.errno or 0))
        except runtimes.ForeignError as e:
            raise FailureError(
                _PERMISSION_DENIED,
                f"{folder} is {e}, and must be a folder of user {sysio.geteuid()}"
                " that nobody else can write to",
                "somebody else made it: remove it, or name another folder in " + VARIABLE,
            ) from e
        except runtimefolder.BusyError as e:
            raise FailureError(
                _TRY_AGAIN_LATER,
                str(e) + ": another process unpacks the runtime, for more than a minute",
                "see who has the file locked (fuser), and why it hangs",
            ) from e
    root = sysio.geteuid() == 0
    raise FailureError(
        _IO_FAILURE if root else _PERMISSION_DENIED,
        "no folder to unpack podwire's runtime into: " + "; ".join(reasons),
        ("name" if root else "run podwire as root, or name")
        + " a folder that can be written, and is not mounted noexec, in "
        + VARIABLE,
    )


def _folders(environ: bytes) -> list[str]:
    chosen = _variable(environ, VARIABLE)
    if not chosen:
        session = _variable(environ, "XDG_RUNTIME_DIR")
        return runtimes.folders(sysio.geteuid(), "" if _has_list_sign(session) else session)
    if not chosen.startswith("/") or _has_list_sign(chosen):
        raise FailureError(
            _INVALID_ENVIRONMENT,
            VARIABLE + " must be an absolute path, without : ; $ and line ends: " + chosen,
        )
    return [chosen.rstrip("/")]


def _has_list_sign(path: str) -> bool:
    return any(sign in path for sign in _LIST_SIGNS)


def _variable(environ: bytes, name: str) -> str:
    """The value of a variable of the environment; "" when it is not set, or no text."""
    start = name.encode() + b"="
    for entry in environ.split(b"\0"):
        if entry.startswith(start):
            try:
                return entry[len(start) :].decode()
            except UnicodeError:
                return ""
    return ""


def _give_stdin(stdin: bytes) -> None:
    fd = sysio.memfd(stdin)
    sysio.dup2(fd, 0)
    if fd != 0:
        sysio.close(fd)


def _interpreter(runtime: str, executable: str, lock: int) -> list[str | bytes]:
    """The command line up to the arguments of main.pyc, which is launcher/entry.py."""
    return [
        runtime + "/ld.so",
        "--inhibit-cache",
        "--library-path",
        runtime + "/lib",
        runtime + "/python",
        "-I",
        "-S",
        "-X",
        "utf8",
        "-X",
        "podwire=" + executable,
        "-X",
        "podwire_lock=" + str(lock),
        runtime + "/main.pyc",
    ]


def _split(environ: bytes) -> tuple[bytes, list[bytes]]:
    """The environment for the interpreter, and the entries that are withheld from it."""
    passed: list[bytes] = []
    withheld: list[bytes] = []
    for entry in environ.split(b"\0"):
        if entry:
            (withheld if entry.startswith(_WITHHELD) else passed).append(entry)
    return b"\0".join(passed + [_ADDED]), withheld  # noqa: RUF005

"""Put on PYTHONPATH, this makes a Python program fail, die or be signalled at one system call.

A *point* is a call that changes something or talks to the kernel. PODWIRE_FAULT is
"<action>:<number>": what happens at the point of that number, counted from 1.

    kill, kill-after    SIGKILL before or after the call
    term, term-after    SIGTERM before or after the call
    stop                SIGSTOP before the call
    fail                the call is not made, and raises EIO
    lost                the call is made, and raises EIO all the same

PODWIRE_FAULT_LOG names a file that gets one line per point reached. The variables are taken away
here, so that programs which this one executes run undisturbed.

For a resident program PODWIRE_FAULT_FILE names a file <base>.fault instead, which is read at each
point: "<action>:<number>:<serial>" is the fault from now on, and counting begins anew when it
changes; "log:0:<serial>" writes the points to <base>.points; an empty or missing file does nothing.
"""

import errno
import fcntl
import os
import signal
import socket
import sys

_action, _, _number = os.environ.pop("PODWIRE_FAULT", "").partition(":")
_log = os.environ.pop("PODWIRE_FAULT_LOG", "")
_file = os.environ.pop("PODWIRE_FAULT_FILE", "")
_armed = None  # what the file held last
_reached = 0
_write, _open, _close, _read = os.write, os.open, os.close, os.read
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _record(name):
    if _log:
        fd = _open(_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        _write(fd, f"{name}\n".encode())
        _close(fd)


def _look():
    """Whether a fault is set; what the file says now is what counts."""
    global _armed, _action, _number, _log, _reached
    try:
        fd = _open(_file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    held = _read(fd, 100).decode()
    _close(fd)
    if held != _armed:
        _armed, _reached = held, 0
        _action, _number, _ = held.split(":") if held else ("", "", "")
        _log = _file.removesuffix(".fault") + ".points" if _action == "log" else ""
    return bool(held)


def _in_upkeep():
    """Whether this is the agent's thread that looks when it likes: its calls are no points."""
    threading = sys.modules.get("threading")
    return threading is not None and threading.current_thread().name == "upkeep"


def _point(name, call, args, kwargs):
    global _reached
    if _file and _in_upkeep():
        return call(*args, **kwargs)
    if _file and not _look():
        return call(*args, **kwargs)
    _reached += 1
    _record(name)
    if str(_reached) != _number:
        return call(*args, **kwargs)
    if _action == "fail":
        raise OSError(errno.EIO, "fault of a test")
    if _action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[_action])
    result = call(*args, **kwargs)
    if _action == "lost":
        raise OSError(errno.EIO, "fault of a test")
    if _action.endswith("-after"):
        os.kill(os.getpid(), _SIGNALS[_action.removesuffix("-after")])
    return result


def _wrap(owner, name):
    call = getattr(owner, name)

    def wrapped(*args, **kwargs):
        shown = [str(arg) for arg in args if isinstance(arg, (str, int))]
        return _point(f"{name} {' '.join(shown)}", call, args, kwargs)

    setattr(owner, name, wrapped)


def _open_for_writing(path, flags, *args, **kwargs):
    if not flags & _WRITING:
        return _open(path, flags, *args, **kwargs)
    return _point(f"open {path}", _open, (path, flags, *args), kwargs)


if _action or _log or _file:
    for _name in ("write", "link", "unlink", "mkdir", "symlink", "rename", "utime", "ftruncate"):
        _wrap(os, _name)
    os.open = _open_for_writing
    _wrap(fcntl, "flock")
    for _name in ("send", "recv", "sendall", "recvmsg"):
        _wrap(socket.socket, _name)

"""Calls the functions of sysio and reports what each returned or raised, as JSON on stdout.

One source for MicroPython, where it is frozen as `boot`, and for CPython. The two reports have to
be equal: tests/unit/test_sysio.py compares them, and says what is right. Arguments: `cases FOLDER`,
with a server at FOLDER/socket (`tests.unit.test_sysio.Server`) and a pipe as stdin, which holds
b"stdin"; or `exec PATH WORDS...`.
"""

import json
import sys

if sys.implementation.name != "micropython":
    from cni_plugin import sysio
else:
    import sysio

O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL = 0, 1, 2, 0o100, 0o200
CLOEXEC = 0o2000000
MISSING_FD = 999


def run(argv):
    if argv[1] == b"exec":
        sysio.execve(argv[2], argv[2:], sysio.environ())
    cases = Cases(argv[2].decode())
    names = [name for name in dir(cases) if name.startswith("case_")]
    report = {name[5:]: attempt(getattr(cases, name)) for name in names}
    sysio.write(1, json.dumps(report).encode())
    return 0


def attempt(call, *args):
    """What the call returned, in what JSON has; or how it failed."""
    try:
        result = call(*args)
    except OSError as e:
        return f"OSError {e.errno}"
    return list(result) if isinstance(result, (bytes, tuple)) else result


def flags(fd):
    """Whether the descriptor is closed by execve."""
    info = sysio.open_file(f"/proc/self/fdinfo/{fd}", O_RDONLY, 0)
    text = sysio.read(info, 4096).decode()
    sysio.close(info)
    found = [line.split()[1] for line in text.split("\n") if line.startswith("flags:")]
    return bool(int(found[0], 8) & CLOEXEC)


class Cases:
    def __init__(self, folder):
        self.folder = folder

    def path(self, name):
        return self.folder + "/" + name

    def file(self, name, content=b""):
        fd = sysio.open_file(self.path(name), O_RDWR | O_CREAT | O_EXCL, 0o600)
        sysio.write(fd, content)
        sysio.seek(fd, 0, 0)
        return fd

    # --- the process

    def case_process(self):
        start = sysio.now()
        return [
            sysio.geteuid(),
            sysio.getpid() > 1,
            sysio.now() >= start,
            sysio.clock() > 1700000000,
            sysio.strerror(2),
            sysio.strerror(99999),
            b"TRIAL=\xff=1\0" in sysio.environ(),
        ]

    def case_execve_fails(self):
        return [
            attempt(sysio.execve, "/proc/nowhere/x", [b"x"], b"A=1\0"),
            attempt(sysio.execve, "/\0", [b"x"], b""),
            attempt(sysio.execve, "/bin/sh", [b"x\0y"], b""),
            attempt(sysio.execve, self.folder, [b"x"], b""),
        ]

    # --- descriptors

    def case_standard_streams(self):
        ready = sysio.wait(0, 5000)
        return [ready, attempt(sysio.read, 0, 100), attempt(sysio.seek, 0, 0, 0)]

    def case_files(self):
        fd = self.file("file", b"0123456789")
        again = attempt(self.file, "file")
        at = [sysio.seek(fd, -3, 2), sysio.read(fd, 100).decode(), sysio.read(fd, 100).decode()]
        sysio.seek(fd, 0, 0)
        sysio.write(fd, b"")
        sysio.write(fd, b"ab")
        sysio.seek(fd, 0, 0)
        content = sysio.read(fd, 4).decode()
        nothing = attempt(sysio.read, fd, 0)
        negative = attempt(sysio.read, fd, -1)
        before_start = attempt(sysio.seek, fd, -1, 0)
        closed = flags(fd)
        sysio.close(fd)
        return [again, at, content, nothing, negative, before_start, closed]

    def case_no_such_descriptor(self):
        return [
            attempt(sysio.close, MISSING_FD),
            attempt(sysio.read, MISSING_FD, 1),
            attempt(sysio.write, MISSING_FD, b"x"),
            attempt(sysio.write, MISSING_FD, b""),
            attempt(sysio.seek, MISSING_FD, 0, 0),
            attempt(sysio.dup2, MISSING_FD, MISSING_FD),
            attempt(sysio.dup2, MISSING_FD, 50),
            attempt(sysio.inherit, MISSING_FD),
            attempt(sysio.lock, MISSING_FD, True, 0),
            attempt(sysio.wait, MISSING_FD, 0),
            attempt(sysio.peer_uid, MISSING_FD),
            attempt(sysio.send, MISSING_FD, b"x"),
        ]

    def case_paths_are_refused(self):
        wrong = ("/proc/nowhere/x", "", "a\0b", b"a\0b", self.folder + "/" + "n" * 300)
        return [
            [attempt(call, path) for path in wrong]
            for call in (
                sysio.open_path,
                sysio.inode,
                sysio.owner_mode,
                sysio.size,
                sysio.mount_flags,
                sysio.mtime,
                sysio.touch,
                sysio.unlink,
                sysio.rmdir,
                sysio.readlink,
                sysio.listdir,
                lambda path: sysio.open_file(path, O_RDONLY, 0),
                lambda path: sysio.mkdir(path, 0o700),
                lambda path: sysio.chmod(path, 0o700),
                lambda path: sysio.rename(path, self.path("y")),
                lambda path: sysio.symlink(path, "/proc/nowhere/y"),
                lambda path: sysio.connect(path, 100),
            )
        ]

    def case_memfd(self):
        content = bytes(range(256)) * 300
        fd = sysio.memfd(content)
        half, rest = sysio.read(fd, 10000), sysio.read(fd, 100000)
        end = sysio.read(fd, 1) == b""
        return [len(half), half + rest == content, end, flags(fd), attempt(sysio.close, fd)]

    def case_dup2(self):
        fd = sysio.memfd(b"memory")
        sysio.dup2(fd, 60)
        copied = [flags(fd), flags(60), sysio.read(60, 10).decode()]
        sysio.dup2(60, 60)
        sysio.dup2(fd, fd)
        onto_itself = [flags(fd), flags(60)]
        sysio.close(60)
        return [copied, onto_itself, attempt(sysio.read, 60, 1)]

    def case_inherit(self):
        fd = sysio.memfd(b"")
        before = flags(fd)
        sysio.inherit(fd)
        return [before, flags(fd)]

    def case_lock(self):
        one = self.file("locked")
        other = sysio.open_file(self.path("locked"), O_RDONLY, 0)
        both_shared = [sysio.lock(one, False, 0), sysio.lock(other, False, 0)]
        start = sysio.now()
        alone = sysio.lock(one, True, 50)
        waited = sysio.now() - start >= 50
        sysio.close(other)
        return [both_shared, alone, waited, sysio.lock(one, True, 0)]

    # --- sockets

    def case_connect_fails(self):
        self.file("no-socket")
        return [
            attempt(sysio.connect, self.path("no-socket"), 100),
            attempt(sysio.connect, "/" + "s" * 106, 100),
            attempt(sysio.connect, "/" + "s" * 107, 100),
        ]

    def case_round_trip(self):
        fd = sysio.connect(self.path("socket"), 5000)
        idle = sysio.wait(fd, 0)
        sysio.send(fd, b"reverse!", sysio.memfd(b"drawer"))
        ready = sysio.wait(fd, 5000)
        reply = sysio.read(fd, 100).decode()
        own = sysio.peer_uid(fd) == sysio.geteuid()
        return [idle, ready, reply, own, flags(fd), attempt(sysio.close, fd)]

    def case_a_lot_is_sent(self):
        fd = sysio.connect(self.path("socket"), 5000)
        sysio.send(fd, b"count.!!" + b"x" * 3000000 + b".", -1)
        return sysio.read(fd, 100).decode()

    def case_silence(self):
        fd = sysio.connect(self.path("socket"), 100)
        sysio.send(fd, b"silence!")
        start = sysio.now()
        return [attempt(sysio.read, fd, 1), 100 <= sysio.now() - start < 3000]

    def case_a_signal_does_not_interrupt(self):
        fd = sysio.connect(self.path("socket"), 5000)
        sysio.send(fd, b"signal!!" + str(sysio.getpid()).encode() + b".")
        return sysio.read(fd, 100).decode()

    def case_the_peer_has_gone(self):
        fd = sysio.connect(self.path("socket"), 5000)
        sysio.send(fd, b"goodbye!")
        end = attempt(sysio.read, fd, 1)
        return [end, attempt(sysio.send, fd, b"x" * 1000)]

    # --- files

    def case_a_file_of_a_folder(self):
        path = self.path("folder")
        sysio.mkdir(path, 0o755)
        sysio.chmod(path, 0o711)
        again = attempt(sysio.mkdir, path, 0o755)
        sysio.close(sysio.open_file(path + "/plain", O_WRONLY | O_CREAT, 0o640))
        sysio.close(sysio.open_file(path.encode() + b"/\xff\xc3", O_WRONLY | O_CREAT, 0o640))
        sysio.symlink(b"\xfe/target", path + "/link")
        full = attempt(sysio.rmdir, path)
        names = sorted(sysio.listdir(path))
        odd = next(name for name in names if name not in ("plain", "link"))
        link = sysio.readlink(path + "/link")
        reused = [attempt(sysio.size, path + "/" + odd), attempt(sysio.symlink, link, path + "/l2")]
        details = [
            sysio.owner_mode(path)[1],
            sysio.owner_mode(path + "/link") == (sysio.geteuid(), 0o120777),
            sysio.size(path + "/link"),
            sysio.inode(path) == sysio.inode(path + "/."),
            attempt(sysio.inode, path + "/link"),
            attempt(sysio.unlink, path),
            attempt(sysio.readlink, path),
        ]
        sysio.rename(path + "/plain", path + "/moved")
        for name in sysio.listdir(path):
            sysio.unlink(path + "/" + name)
        return [again, full, len(names), reused, details, attempt(sysio.rmdir, path)]

    def case_times(self):
        path = self.path("touched")
        fd = self.file("touched", b"x" * 1000)
        sysio.touch(path)
        age = sysio.clock() - sysio.mtime(path)
        sysio.close(fd)
        return [-1 <= age <= 5, sysio.size(path)]

    def case_mounts(self):
        return [sysio.mount_flags("/proc"), sysio.mount_flags(self.folder)]

    def case_open_path(self):
        fd = sysio.open_path(self.folder)
        return [attempt(sysio.read, fd, 1), flags(fd), attempt(sysio.close, fd)]

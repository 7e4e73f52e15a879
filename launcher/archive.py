"""The archive at the end of the executable, which holds the CPython runtime.

One source for MicroPython, where it is frozen into the executable, and for CPython, which builds
archives and tests this: it keeps to what both have.

The executable ends with an archive and a trailer (TRAILER: magic, offset and length of the archive,
its SHA-256). The archive is a header (HEADER: bytes of the index, number of blocks), the index
and the blocks. The index has a line for each folder, `d PATH`, and for each file, `MODE SIZE
PATH` (octal, decimal), parents first. A block is BLOCK (bytes compressed, bytes plain) and raw
deflate data; all blocks together are the files' contents in the order of the index.
"""

import hashlib
import io
import struct
import sys

if sys.implementation.name != "micropython":
    import zlib

    from cni_plugin import sysio
else:
    import deflate  # type: ignore[import-not-found]
    import sysio  # type: ignore[import-not-found, no-redef]

MAGIC = b"podwire\x01"
TRAILER = "<8sQQ32s"
HEADER = "<II"
BLOCK = "<II"

_TRAILER_BYTES = struct.calcsize(TRAILER)
_HEADER_BYTES = struct.calcsize(HEADER)
_BLOCK_BYTES = struct.calcsize(BLOCK)
_SEEK_SET, _SEEK_END = 0, 2


class DamagedError(Exception):
    """The file does not hold the archive it was built with."""


class Archive:
    """The archive in the open executable `fd`, which stays the caller's.

    `digest`: its SHA-256. `files`: (mode, size, path) of each file; a folder has the mode 0.
    Raises DamagedError, OSError.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        length = sysio.seek(fd, 0, _SEEK_END)
        sysio.seek(fd, max(length - _TRAILER_BYTES, 0), _SEEK_SET)
        magic, offset, size, self.digest = struct.unpack(TRAILER, self._read(_TRAILER_BYTES))
        if magic != MAGIC or offset + size + _TRAILER_BYTES != length:
            raise DamagedError
        sysio.seek(fd, offset, _SEEK_SET)
        self._head = self._read(_HEADER_BYTES)
        index_bytes, self._blocks = struct.unpack(HEADER, self._head)
        if index_bytes > size:
            raise DamagedError
        index = self._read(index_bytes)
        self._head += index
        self._start = offset + len(self._head)
        try:
            self.files = [_entry(line) for line in index.decode().split("\n") if line]
        except ValueError as e:
            raise DamagedError from e

    def contents(self):  # type: ignore[no-untyped-def]  # MicroPython has no name for an iterator
        """The plain data of each block; after the last, DamagedError if they are not as built."""
        digest = hashlib.sha256(self._head)
        sysio.seek(self._fd, self._start, _SEEK_SET)
        for _ in range(self._blocks):
            header = self._read(_BLOCK_BYTES)
            compressed, plain = struct.unpack(BLOCK, header)
            data = self._read(compressed)
            digest.update(header)
            digest.update(data)
            yield _inflate(data, plain)
        if digest.digest() != self.digest:
            raise DamagedError

    def _read(self, size: int) -> bytes:
        data = sysio.read(self._fd, size)
        while len(data) < size:
            more = sysio.read(self._fd, size - len(data))
            if not more:
                raise DamagedError
            data += more
        return data


def _entry(line: str) -> tuple[int, int, str]:
    if line.startswith("d "):
        return 0, 0, line[2:]
    mode, size, path = line.split(" ", 2)
    return int(mode, 8), int(size), path


def _inflate(data: bytes, size: int) -> bytes:
    """`size` bytes from raw deflate data. Raises DamagedError."""
    try:
        if sys.implementation.name != "micropython":
            plain = zlib.decompressobj(-15).decompress(data, size)
        else:
            plain = deflate.DeflateIO(io.BytesIO(data), deflate.RAW, 15).read(size)
    except (ValueError, EOFError, OSError) as e:
        raise DamagedError from e
    except Exception as e:
        if sys.implementation.name != "micropython" and isinstance(e, zlib.error):
            raise DamagedError from e
        raise
    if len(plain) != size:
        raise DamagedError
    return plain

"""Addresses for pods from a directory of this host: what the Go plugin host-local does.

ADD takes one address from each range set, all or none; DEL gives back what the attachment holds;
CHECK compares; GC gives back what nobody valid holds; STATUS says whether an ADD would be served.
All the state is in the store (store.py), which is locked for the length of one call, except for
STATUS, for CHECK where it can, and for listings: they read only, and make nothing on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from errno import EACCES, ENOSPC, ENOTDIR, EROFS

from cni_plugin.spec import Attachment, CniError, Code, IPAddress, Result
from ipam import resolv_conf
from ipam import store as stores
from ipam.allocator import allocate, assign, exhausted, vacant, who
from ipam.config import HostLocalConf, Place
from ipam.directory import exists, read_cursor
from ipam.index import Reservation, decode, read
from ipam.ranges import find, parse_address

# --- ADD --------------------------------------------------------------------------------------


def add(conf: HostLocalConf, attachment: Attachment, boot: str | None = None) -> Result:
    """Reserves one address from each range set; routes and DNS are those configured.

    Raises CniError: 100 when a set is exhausted, 101 for a requested address that can't be
    given, 109 when the attachment holds an address already, 5, 11 and 110 for the store. Then
    nothing stays reserved by this call.
    """
    dns = resolv_conf.read(conf.resolv_conf)
    wanted = assign(conf.range_sets, conf.requested)
    with stores.opened(conf.data_dir, conf.network, boot) as store:
        ips = allocate(store, conf.range_sets, attachment, wanted)
    return Result(ips=ips, routes=conf.routes, dns=dns)


# --- DEL and GC -------------------------------------------------------------------------------


def release(place: Place, attachment: Attachment, boot: str | None = None) -> None:
    """Frees what the attachment holds; nothing to free is no error, and makes nothing."""
    with stores.existing(place.data_dir, place.network, boot) as store:
        if store is not None:
            store.release_all(attachment)


def collect(
    place: Place, valid: frozenset[Attachment], boot: str | None = None
) -> list[Attachment]:
    """Frees the reservations of all attachments that are not valid, and returns these.

    A reservation that names only the container (an old version made it) is valid when any valid
    attachment is of that container. Goes on after an error: CniError 108 reports them all.
    """
    released: set[Attachment] = set()
    errors = []
    with stores.existing(place.data_dir, place.network, boot) as store:
        if store is None:
            return []
        for reservation in store.others(valid):
            try:
                store.release(reservation.address, reservation.attachment)
            except OSError as e:
                errors.append(f"{reservation.address}: {e.strerror}")
            else:
                released.add(reservation.attachment)
        if errors:
            store.distrust()
    if errors:
        raise CniError(
            Code.GC_INCOMPLETE,
            f"{stores.location(*place)}: {len(errors)} reservations could not be freed",
            "; ".join(errors),
        )
    return sorted(released)


def stale(
    place: Place, valid: frozenset[Attachment], boot: str | None = None
) -> frozenset[Attachment]:
    """The attachments that `collect` would free."""
    with stores.existing(place.data_dir, place.network, boot) as store:
        found = [] if store is None else store.others(valid)
    return frozenset(reservation.attachment for reservation in found)


# --- CHECK and STATUS -------------------------------------------------------------------------


def check(
    conf: HostLocalConf,
    attachment: Attachment,
    addresses: Collection[IPAddress],
    boot: str | None = None,
) -> None:
    """Compares what the pod has with what is reserved for it.

    Raises CniError 107 when one of `addresses` inside the ranges is not reserved for the
    attachment, or when it holds no reservation at all.
    """
    inside = [a for a in addresses if any(find(s, a) for s in conf.range_sets)]
    for address in inside:
        holder = holder_of(conf.place, address)
        if holder not in (attachment, attachment._replace(ifname="")):
            raise _differs(
                f"{address} of {who(attachment)} is reserved"
                f" {'for nobody' if holder is None else 'for ' + who(holder)}"
            )
    if not inside and not holds(conf.place, attachment, boot):
        raise _differs(f"{who(attachment)} holds no reservation")


def holds(place: Place, attachment: Attachment, boot: str | None = None) -> bool:
    """Whether the attachment, or its container in an old reservation, holds an address."""
    with stores.existing(place.data_dir, place.network, boot) as store:
        return store is not None and bool(store.held(attachment))


def _differs(what: str) -> CniError:
    return CniError(Code.CHECK_FAILED, what, "the pod must be created anew")


def status(conf: HostLocalConf, boot: str | None = None) -> None:
    """Whether an ADD would find an address. Reads only; its cost is that of the search.

    Raises CniError 50 when a range set is exhausted, or the store or resolvConf can't be used.
    """
    path = stores.location(conf.data_dir, conf.network)
    try:
        resolv_conf.read(conf.resolv_conf)
        _refuse_unusable(path)
        fd = _open(path)
        if fd is None:
            return
        try:
            for index, range_set in enumerate(conf.range_sets):
                if not _has_vacancy(fd, conf, index, boot):
                    raise exhausted(range_set, index, Code.NOT_AVAILABLE)
        finally:
            os.close(fd)
    except OSError as e:
        error = stores.failure(e, path)
        raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from e
    except CniError as e:
        raise CniError(Code.NOT_AVAILABLE, e.msg, e.details) from e


def _refuse_unusable(path: str) -> None:
    """OSError when the directory, or the one that it would be made in, can't take a file."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise OSError(ENOTDIR, os.strerror(ENOTDIR), path)
    space = os.statvfs(path)
    if space.f_flag & os.ST_RDONLY:
        raise OSError(EROFS, os.strerror(EROFS), path)
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        raise OSError(EACCES, os.strerror(EACCES), path)
    if (space.f_blocks and not space.f_bfree) or (space.f_files and not space.f_ffree):
        raise OSError(ENOSPC, os.strerror(ENOSPC), path)


def _has_vacancy(fd: int, conf: HostLocalConf, index: int, boot: str | None) -> bool:
    range_set = conf.range_sets[index]

    def taken(address: IPAddress) -> bool:
        return exists(fd, address)

    found = vacant(range_set, read_cursor(fd, index), taken, lambda: os.listdir(fd))
    if next(found, None) is not None:
        return True
    for name in stores.reclaimable(fd, conf.network, boot):
        address = parse_address(name)
        if address is not None and find(range_set, address):
            return True
    return False


# --- what people ask for ----------------------------------------------------------------------


def reservations(place: Place) -> list[Reservation]:
    """All reservations in the order of their addresses, as they are: no lock, nothing made."""
    path = stores.location(place.data_dir, place.network)
    found = []
    try:
        fd = _open(path)
        if fd is None:
            return []
        try:
            for name in os.listdir(fd):
                address = parse_address(name)
                holder = None if address is None else decode(read(fd, name))
                if address is not None and holder is not None:
                    found.append(Reservation(address, holder, _since(fd, name)))
        finally:
            os.close(fd)
    except OSError as e:
        raise stores.failure(e, path) from e
    return sorted(found, key=lambda r: (r.address.version, int(r.address)))


def _since(fd: int, name: str) -> int:
    try:
        return int(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime)
    except FileNotFoundError:  # released just now
        return 0


def holder_of(place: Place, address: IPAddress) -> Attachment | None:
    """Who holds the address; no lock, nothing made."""
    path = stores.location(place.data_dir, place.network)
    try:
        fd = _open(path)
        if fd is None:
            return None
        try:
            return decode(read(fd, str(address)))
        finally:
            os.close(fd)
    except OSError as e:
        raise stores.failure(e, path) from e


def free(place: Place, address: IPAddress, boot: str | None = None) -> Attachment | None:
    """Frees one address, whoever holds it: its holder, None when nobody did."""
    with stores.existing(place.data_dir, place.network, boot) as store:
        holder = None if store is None else store.holder(address)
        if store is not None and holder is not None:
            store.release(address, holder)
        return holder


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None

// System calls for the client and for unpacking the runtime, as a module of MicroPython.
//
// cni_plugin/sysio.py is the same module for CPython, and its docstrings are this one's
// documentation: the functions, their arguments and their errors (OSError with the errno) agree.
// Rules: each function wraps a system call and holds no policy; bytes in, bytes out; a call that a
// signal interrupts goes on; descriptors are made with O_CLOEXEC.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "py/objstr.h"
#include "py/runtime.h"

extern char **environ;

// --- arguments and results --------------------------------------------------------------------

#define RETRY(result, call) \
    do { \
        result = (call); \
    } while (result == -1 && errno == EINTR)

static mp_obj_t none_unless_failed(int result) {
    if (result == -1) {
        mp_raise_OSError(errno);
    }
    return mp_const_none;
}

static mp_obj_t int_unless_failed(long long result) {
    if (result == -1) {
        mp_raise_OSError(errno);
    }
    return mp_obj_new_int_from_ll(result);
}

// A str or bytes as a C string. Their data ends in a zero byte that does not count.
static const char *text_arg(mp_obj_t object) {
    size_t size;
    const char *text = mp_obj_str_get_data(object, &size);
    if (strlen(text) != size) {
        mp_raise_OSError(EINVAL);
    }
    return text;
}

static long long milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static int write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t written;
        RETRY(written, write(fd, data, size));
        if (written == -1) {
            return -1;
        }
        data += written;
        size -= written;
    }
    return 0;
}

// --- the process ------------------------------------------------------------------------------

static mp_obj_t sysio_environ(void) {
    vstr_t entries;
    vstr_init(&entries, 4096);
    for (char **entry = environ; entry && *entry; entry++) {
        vstr_add_strn(&entries, *entry, strlen(*entry) + 1);
    }
    return mp_obj_new_bytes_from_vstr(&entries);
}
static MP_DEFINE_CONST_FUN_OBJ_0(sysio_environ_obj, sysio_environ);

static mp_obj_t sysio_now(void) {
    return mp_obj_new_int_from_ll(milliseconds());
}
static MP_DEFINE_CONST_FUN_OBJ_0(sysio_now_obj, sysio_now);

static mp_obj_t sysio_clock(void) {
    return mp_obj_new_int_from_ll(time(NULL));
}
static MP_DEFINE_CONST_FUN_OBJ_0(sysio_clock_obj, sysio_clock);

static mp_obj_t sysio_geteuid(void) {
    return mp_obj_new_int_from_uint(geteuid());
}
static MP_DEFINE_CONST_FUN_OBJ_0(sysio_geteuid_obj, sysio_geteuid);

static mp_obj_t sysio_getpid(void) {
    return mp_obj_new_int(getpid());
}
static MP_DEFINE_CONST_FUN_OBJ_0(sysio_getpid_obj, sysio_getpid);

static mp_obj_t sysio_strerror(mp_obj_t number) {
    const char *text = strerror(mp_obj_get_int(number));
    return mp_obj_new_str(text, strlen(text));
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_strerror_obj, sysio_strerror);

static mp_obj_t sysio_execve(mp_obj_t path, mp_obj_t arguments, mp_obj_t environment) {
    size_t count;
    mp_obj_t *items;
    mp_obj_get_array(arguments, &count, &items);
    const char **argv = m_new0(const char *, count + 1);
    for (size_t i = 0; i < count; i++) {
        argv[i] = text_arg(items[i]);
    }
    size_t size;
    const char *entries = mp_obj_str_get_data(environment, &size);
    size_t room = 1;
    for (size_t at = 0; at < size; at += strlen(entries + at) + 1) {
        room++;
    }
    const char **envp = m_new0(const char *, room);
    const char **next = envp;
    for (size_t at = 0; at < size; at += strlen(entries + at) + 1) {
        *next++ = entries + at;
    }
    return none_unless_failed(execve(text_arg(path), (char **)argv, (char **)envp));
}
static MP_DEFINE_CONST_FUN_OBJ_3(sysio_execve_obj, sysio_execve);

// --- descriptors ------------------------------------------------------------------------------

static mp_obj_t sysio_open_path(mp_obj_t path) {
    int fd;
    RETRY(fd, open(text_arg(path), O_PATH | O_CLOEXEC));
    return int_unless_failed(fd);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_open_path_obj, sysio_open_path);

static mp_obj_t sysio_open_file(mp_obj_t path, mp_obj_t flags, mp_obj_t mode) {
    int fd;
    RETRY(fd, open(text_arg(path), mp_obj_get_int(flags) | O_CLOEXEC, mp_obj_get_int(mode)));
    return int_unless_failed(fd);
}
static MP_DEFINE_CONST_FUN_OBJ_3(sysio_open_file_obj, sysio_open_file);

static mp_obj_t sysio_memfd(mp_obj_t content) {
    mp_buffer_info_t data;
    mp_get_buffer_raise(content, &data, MP_BUFFER_READ);
    int fd = memfd_create("podwire", MFD_CLOEXEC);
    if (fd != -1 && (write_all(fd, data.buf, data.len) == -1 || lseek(fd, 0, SEEK_SET) == -1)) {
        int failure = errno;
        close(fd);
        mp_raise_OSError(failure);
    }
    return int_unless_failed(fd);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_memfd_obj, sysio_memfd);

static mp_obj_t sysio_close(mp_obj_t fd) {
    int result = close(mp_obj_get_int(fd));
    // Linux has closed it by then: to try again could close another's.
    return none_unless_failed(result == -1 && errno == EINTR ? 0 : result);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_close_obj, sysio_close);

static mp_obj_t sysio_dup2(mp_obj_t fd, mp_obj_t number) {
    int from = mp_obj_get_int(fd), to = mp_obj_get_int(number), result;
    RETRY(result, from == to ? fcntl(from, F_SETFD, 0) : dup2(from, to));
    return none_unless_failed(result);
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_dup2_obj, sysio_dup2);

static mp_obj_t sysio_inherit(mp_obj_t fd) {
    return none_unless_failed(fcntl(mp_obj_get_int(fd), F_SETFD, 0));
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_inherit_obj, sysio_inherit);

static mp_obj_t sysio_seek(mp_obj_t fd, mp_obj_t offset, mp_obj_t whence) {
    return int_unless_failed(
        lseek(mp_obj_get_int(fd), mp_obj_get_int(offset), mp_obj_get_int(whence)));
}
static MP_DEFINE_CONST_FUN_OBJ_3(sysio_seek_obj, sysio_seek);

static mp_obj_t sysio_read(mp_obj_t fd, mp_obj_t size) {
    mp_int_t room = mp_obj_get_int(size);
    if (room < 0) {
        mp_raise_OSError(EINVAL);
    }
    char few[64 * 1024]; // memory of the heap would be cleared first, which takes longer
    vstr_t many = {.buf = few};
    if (room > (mp_int_t)sizeof(few)) {
        vstr_init_len(&many, room);
    }
    ssize_t got;
    RETRY(got, read(mp_obj_get_int(fd), many.buf, room));
    if (got == -1) {
        mp_raise_OSError(errno);
    }
    if (many.buf == few) {
        return mp_obj_new_bytes((byte *)few, got);
    }
    many.len = got;
    return mp_obj_new_bytes_from_vstr(&many);
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_read_obj, sysio_read);

static mp_obj_t sysio_write(mp_obj_t fd, mp_obj_t content) {
    mp_buffer_info_t data;
    mp_get_buffer_raise(content, &data, MP_BUFFER_READ);
    return none_unless_failed(write_all(mp_obj_get_int(fd), data.buf, data.len));
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_write_obj, sysio_write);

static mp_obj_t sysio_wait(mp_obj_t fd, mp_obj_t timeout_ms) {
    struct pollfd waited = {.fd = mp_obj_get_int(fd), .events = POLLIN};
    long long left = mp_obj_get_int(timeout_ms), deadline = milliseconds() + left;
    int ready;
    while ((ready = poll(&waited, 1, left)) == -1 && errno == EINTR) {
        if (left > 0) {
            left = deadline - milliseconds();
            left = left > 0 ? left : 0;
        }
    }
    if (ready == -1) {
        mp_raise_OSError(errno);
    }
    return mp_obj_new_bool(ready);
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_wait_obj, sysio_wait);

static mp_obj_t sysio_lock(mp_obj_t fd, mp_obj_t exclusive, mp_obj_t timeout_ms) {
    int operation = (mp_obj_is_true(exclusive) ? LOCK_EX : LOCK_SH) | LOCK_NB;
    long long deadline = milliseconds() + mp_obj_get_int(timeout_ms);
    int result;
    RETRY(result, flock(mp_obj_get_int(fd), operation));
    while (result == -1 && errno == EWOULDBLOCK && milliseconds() < deadline) {
        nanosleep(&(struct timespec) {.tv_nsec = 5000000}, NULL);
        RETRY(result, flock(mp_obj_get_int(fd), operation));
    }
    if (result == -1 && errno == EWOULDBLOCK) {
        return mp_const_false;
    }
    none_unless_failed(result);
    return mp_const_true;
}
static MP_DEFINE_CONST_FUN_OBJ_3(sysio_lock_obj, sysio_lock);

// --- UNIX sockets -----------------------------------------------------------------------------

static mp_obj_t sysio_connect(mp_obj_t path, mp_obj_t timeout_ms) {
    const char *text = text_arg(path);
    size_t size = strlen(text);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (size >= sizeof(address.sun_path)) {
        mp_raise_OSError(ENAMETOOLONG);
    }
    memcpy(address.sun_path, text, size);
    long timeout = mp_obj_get_int(timeout_ms);
    struct timeval limit = {.tv_sec = timeout / 1000, .tv_usec = timeout % 1000 * 1000};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd == -1) {
        mp_raise_OSError(errno);
    }
    int result = setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (result == 0) {
        result = setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    }
    if (result == 0) {
        socklen_t length = offsetof(struct sockaddr_un, sun_path) + size;
        RETRY(result, connect(fd, (struct sockaddr *)&address, length));
    }
    if (result == -1) {
        int failure = errno;
        close(fd);
        mp_raise_OSError(failure);
    }
    return mp_obj_new_int(fd);
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_connect_obj, sysio_connect);

static mp_obj_t sysio_peer_uid(mp_obj_t fd) {
    struct ucred peer;
    socklen_t size = sizeof(peer);
    none_unless_failed(getsockopt(mp_obj_get_int(fd), SOL_SOCKET, SO_PEERCRED, &peer, &size));
    return mp_obj_new_int((int)peer.uid);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_peer_uid_obj, sysio_peer_uid);

static mp_obj_t sysio_send(size_t count, const mp_obj_t *args) {
    int fd = mp_obj_get_int(args[0]), passed = count > 2 ? mp_obj_get_int(args[2]) : -1;
    mp_buffer_info_t data;
    mp_get_buffer_raise(args[1], &data, MP_BUFFER_READ);
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &passed, sizeof(passed));
    struct iovec part = {data.buf, data.len};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }
    while (part.iov_len > 0) {
        ssize_t sent;
        RETRY(sent, sendmsg(fd, &message, MSG_NOSIGNAL));
        if (sent <= 0) {
            mp_raise_OSError(sent == 0 ? EPIPE : errno);
        }
        part.iov_base = (char *)part.iov_base + sent;
        part.iov_len -= sent;
        message.msg_control = NULL;
        message.msg_controllen = 0;
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(sysio_send_obj, 2, 3, sysio_send);

// --- files ------------------------------------------------------------------------------------

static struct stat status_of(mp_obj_t path, int flags) {
    struct stat status;
    none_unless_failed(fstatat(AT_FDCWD, text_arg(path), &status, flags));
    return status;
}

static mp_obj_t sysio_inode(mp_obj_t path) {
    return mp_obj_new_int_from_ull(status_of(path, 0).st_ino);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_inode_obj, sysio_inode);

static mp_obj_t sysio_owner_mode(mp_obj_t path) {
    struct stat status = status_of(path, AT_SYMLINK_NOFOLLOW);
    mp_obj_t pair[] = {
        mp_obj_new_int_from_uint(status.st_uid), mp_obj_new_int_from_uint(status.st_mode)};
    return mp_obj_new_tuple(2, pair);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_owner_mode_obj, sysio_owner_mode);

static mp_obj_t sysio_size(mp_obj_t path) {
    return mp_obj_new_int_from_ll(status_of(path, AT_SYMLINK_NOFOLLOW).st_size);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_size_obj, sysio_size);

static mp_obj_t sysio_mount_flags(mp_obj_t path) {
    struct statvfs mount;
    int result;
    RETRY(result, statvfs(text_arg(path), &mount));
    none_unless_failed(result);
    return mp_obj_new_int_from_uint(mount.f_flag);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_mount_flags_obj, sysio_mount_flags);

static mp_obj_t sysio_mtime(mp_obj_t path) {
    return mp_obj_new_int_from_ll(status_of(path, AT_SYMLINK_NOFOLLOW).st_mtime);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_mtime_obj, sysio_mtime);

static mp_obj_t sysio_touch(mp_obj_t path) {
    return none_unless_failed(utimensat(AT_FDCWD, text_arg(path), NULL, 0));
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_touch_obj, sysio_touch);

static mp_obj_t sysio_mkdir(mp_obj_t path, mp_obj_t mode) {
    return none_unless_failed(mkdir(text_arg(path), mp_obj_get_int(mode)));
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_mkdir_obj, sysio_mkdir);

static mp_obj_t sysio_chmod(mp_obj_t path, mp_obj_t mode) {
    return none_unless_failed(chmod(text_arg(path), mp_obj_get_int(mode)));
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_chmod_obj, sysio_chmod);

static mp_obj_t sysio_rename(mp_obj_t path, mp_obj_t to) {
    return none_unless_failed(rename(text_arg(path), text_arg(to)));
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_rename_obj, sysio_rename);

static mp_obj_t sysio_unlink(mp_obj_t path) {
    return none_unless_failed(unlink(text_arg(path)));
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_unlink_obj, sysio_unlink);

static mp_obj_t sysio_rmdir(mp_obj_t path) {
    return none_unless_failed(rmdir(text_arg(path)));
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_rmdir_obj, sysio_rmdir);

static mp_obj_t sysio_symlink(mp_obj_t target, mp_obj_t path) {
    return none_unless_failed(symlink(text_arg(target), text_arg(path)));
}
static MP_DEFINE_CONST_FUN_OBJ_2(sysio_symlink_obj, sysio_symlink);

static mp_obj_t sysio_readlink(mp_obj_t path) {
    char target[PATH_MAX];
    ssize_t size = readlink(text_arg(path), target, sizeof(target));
    none_unless_failed(size);
    return mp_obj_new_str_copy(&mp_type_str, (const byte *)target, size);
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_readlink_obj, sysio_readlink);

static mp_obj_t sysio_listdir(mp_obj_t path) {
    DIR *folder = opendir(text_arg(path));
    if (folder == NULL) {
        mp_raise_OSError(errno);
    }
    nlr_buf_t nlr;
    if (nlr_push(&nlr) != 0) {
        closedir(folder);
        nlr_jump(nlr.ret_val);
    }
    mp_obj_t names = mp_obj_new_list(0, NULL);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (entry == NULL) {
            none_unless_failed(errno == 0 ? 0 : -1);
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            mp_obj_list_append(names, mp_obj_new_str_copy(
                &mp_type_str, (const byte *)entry->d_name, strlen(entry->d_name)));
        }
    }
    nlr_pop();
    closedir(folder);
    return names;
}
static MP_DEFINE_CONST_FUN_OBJ_1(sysio_listdir_obj, sysio_listdir);

// --- the module -------------------------------------------------------------------------------

#define FUNCTION(name) {MP_ROM_QSTR(MP_QSTR_##name), MP_ROM_PTR(&sysio_##name##_obj)}

static const mp_rom_map_elem_t sysio_globals_table[] = {
    {MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR_sysio)},
    FUNCTION(environ),
    FUNCTION(now),
    FUNCTION(clock),
    FUNCTION(geteuid),
    FUNCTION(getpid),
    FUNCTION(strerror),
    FUNCTION(execve),
    FUNCTION(open_path),
    FUNCTION(open_file),
    FUNCTION(memfd),
    FUNCTION(close),
    FUNCTION(dup2),
    FUNCTION(inherit),
    FUNCTION(seek),
    FUNCTION(read),
    FUNCTION(write),
    FUNCTION(wait),
    FUNCTION(lock),
    FUNCTION(connect),
    FUNCTION(peer_uid),
    FUNCTION(send),
    FUNCTION(inode),
    FUNCTION(owner_mode),
    FUNCTION(size),
    FUNCTION(mount_flags),
    FUNCTION(mtime),
    FUNCTION(touch),
    FUNCTION(mkdir),
    FUNCTION(chmod),
    FUNCTION(rename),
    FUNCTION(unlink),
    FUNCTION(rmdir),
    FUNCTION(symlink),
    FUNCTION(readlink),
    FUNCTION(listdir),
};
static MP_DEFINE_CONST_DICT(sysio_globals, sysio_globals_table);

const mp_obj_module_t sysio_module = {
    .base = {&mp_type_module},
    .globals = (mp_obj_dict_t *)&sysio_globals,
};
MP_REGISTER_MODULE(MP_QSTR_sysio, sysio_module);

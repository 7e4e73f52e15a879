// Runs the frozen module `boot`: its function run(argv), argv as bytes, returns the exit status.
//
// No option, no variable of the environment and no file can change what runs: sys.path holds the
// frozen modules alone, and the compiler is not built in (mpconfigport.h).

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "py/builtin.h"
#include "py/cstack.h"
#include "py/gc.h"
#include "py/objlist.h"
#include "py/objmodule.h"
#include "py/runtime.h"
#include "shared/runtime/gchelper.h"

#define FIRST_HEAP (512 * 1024) // pages that are not used cost nothing
#define STACK (4 * 1024 * 1024) // of the 8 MiB that processes usually get

// A caller may have closed stdin, stdout or stderr: nothing else must get their numbers. In their
// place comes a pipe without a writer: stdin is at its end, and to write to stdout fails (EBADF).
static void fill_standard_fds(void) {
    for (int number = 0; number <= 2; number++) {
        int pipe_ends[2];
        if (fcntl(number, F_GETFD) != -1) {
            continue;
        }
        if (number == 2 && open("/dev/null", O_WRONLY) == number) {
            continue;
        }
        if (pipe(pipe_ends) != 0 || pipe_ends[0] != number) { // the lowest free number
            _exit(1);
        }
        close(pipe_ends[1]);
    }
}

// The first process of a container gets no signal that it has not asked for: SIGTERM would be lost
// on an agent that is just starting, and its end take the whole of the pod's grace period. So it
// waits, also beyond exec, until cni_plugin/agent/life.py takes it.
static void hold_termination(void) {
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGINT);
    sigprocmask(SIG_BLOCK, &held, NULL);
}

static int run_boot(int argc, char **argv) {
    nlr_buf_t nlr;
    if (nlr_push(&nlr) != 0) {
        mp_obj_print_exception(&mp_plat_print, MP_OBJ_FROM_PTR(nlr.ret_val));
        return 1;
    }
    mp_sys_path = mp_obj_new_list(0, NULL);
    mp_obj_list_append(mp_sys_path, MP_OBJ_NEW_QSTR(MP_QSTR__dot_frozen));
    mp_obj_list_init(MP_OBJ_TO_PTR(mp_sys_argv), 0);
    mp_obj_t arguments = mp_obj_new_list(0, NULL);
    for (int i = 0; i < argc; i++) {
        mp_obj_list_append(arguments, mp_obj_new_bytes((const byte *)argv[i], strlen(argv[i])));
    }
    mp_obj_t boot = mp_import_name(MP_QSTR_boot, mp_const_none, MP_OBJ_NEW_SMALL_INT(0));
    mp_obj_t status = mp_call_function_1(mp_load_attr(boot, MP_QSTR_run), arguments);
    int result = mp_obj_get_int(status);
    nlr_pop();
    return result;
}

int main(int argc, char **argv) {
    static char heap[FIRST_HEAP];
    fill_standard_fds();
    signal(SIGPIPE, SIG_IGN); // a reader that has gone is EPIPE
    if (getpid() == 1 && argc > 1 && strcmp(argv[1], "agent") == 0) {
        hold_termination();
    }
    mp_cstack_init_with_sp_here(STACK);
    gc_init(heap, heap + sizeof(heap));
    mp_init();
    _exit(run_boot(argc, argv)); // nothing is buffered, and the kernel takes it all back faster
}

// --- what MicroPython asks of a port ----------------------------------------------------------

void gc_collect(void) {
    gc_collect_start();
    gc_helper_collect_regs_and_stack();
    gc_collect_end();
}

// How much the heap may grow at once: whatever the system grants.
size_t gc_get_max_new_split(void) {
    return SIZE_MAX / 2;
}

// print() and tracebacks: stdout is the plugin's reply, and not theirs.
void mp_hal_stdout_tx_strn_cooked(const char *text, size_t size) {
    ssize_t written;
    do {
        written = write(STDERR_FILENO, text, size);
    } while (written == -1 && errno == EINTR);
}

// No module lies outside this file.
mp_import_stat_t mp_import_stat(const char *path) {
    return MP_IMPORT_STAT_NO_EXIST;
}

// Files are opened by the module sysio.
static mp_obj_t no_open(size_t count, const mp_obj_t *args, mp_map_t *keywords) {
    mp_raise_OSError(ENOSYS);
}
MP_DEFINE_CONST_FUN_OBJ_KW(mp_builtin_open_obj, 0, no_open);

void nlr_jump_fail(void *value) {
    _exit(1);
}

// MicroPython's options. What a client needs: bytes and JSON. What it must not have: a compiler,
// a REPL, or any way to take code from outside its own file.

#include <alloca.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define MICROPY_CONFIG_ROM_LEVEL (MICROPY_CONFIG_ROM_LEVEL_EXTRA_FEATURES)

// Only frozen modules run: no source is compiled and no .mpy is loaded.
#define MICROPY_ENABLE_COMPILER (0)
#define MICROPY_PERSISTENT_CODE_LOAD (0)
#define MICROPY_ENABLE_EXTERNAL_IMPORT (1) // the import of frozen modules is part of it
#define MICROPY_PY_SYS_PATH_ARGV_DEFAULTS (0)
#define MICROPY_HELPER_REPL (0)
#define MICROPY_KBD_EXCEPTION (0)
#define MICROPY_ENABLE_SCHEDULER (0)
#define MICROPY_PY_BUILTINS_HELP (0)
#define MICROPY_PY_BUILTINS_INPUT (0)

// The heap starts small, for the speed of starting, and grows for a configuration of megabytes.
#define MICROPY_ENABLE_GC (1)
#define MICROPY_GC_SPLIT_HEAP (1)
#define MICROPY_GC_SPLIT_HEAP_AUTO (1)
#define MICROPY_STACK_CHECK_MARGIN (16384)

// Numbers as in CPython: the inode of a namespace has 32 bits, JSON has floats.
#define MICROPY_LONGINT_IMPL (MICROPY_LONGINT_IMPL_MPZ)
#define MICROPY_FLOAT_IMPL (MICROPY_FLOAT_IMPL_DOUBLE)
#define MPZ_DIG_SIZE (16) // what frozen integers are written for

#define MICROPY_ERROR_REPORTING (MICROPY_ERROR_REPORTING_DETAILED)
#define MICROPY_ENABLE_SOURCE_LINE (1)
#define MICROPY_USE_INTERNAL_PRINTF (0)

#define MICROPY_PY_SYS_STDFILES (0) // print() goes to stderr: main.c
#define MICROPY_PY_HASHLIB_SHA256 (1)

// Modules of the level above that nothing here uses.
#define MICROPY_PY_ASYNCIO (0)
#define MICROPY_PY_CMATH (0)
#define MICROPY_PY_FRAMEBUF (0)
#define MICROPY_PY_HEAPQ (0)
#define MICROPY_PY_MACHINE (0)
#define MICROPY_PY_MATH (0)
#define MICROPY_PY_OS (0)
#define MICROPY_PY_PLATFORM (0)
#define MICROPY_PY_RANDOM (0)
#define MICROPY_PY_RE (0)
#define MICROPY_PY_SELECT (0)
#define MICROPY_PY_TIME (0)
#define MICROPY_PY_UCTYPES (0)

typedef long mp_int_t;
typedef unsigned long mp_uint_t;
typedef long mp_off_t;
_Static_assert(sizeof(mp_int_t) == sizeof(void *), "an integer of MicroPython holds a pointer");

#define MICROPY_PY_SYS_PLATFORM "linux"
#define MICROPY_HW_BOARD_NAME "podwire"
#define MICROPY_HW_MCU_NAME "linux"
#define MP_STATE_PORT MP_STATE_VM

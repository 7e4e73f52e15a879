"""A program that calls each function of sysio, for CPython and frozen into MicroPython alike."""

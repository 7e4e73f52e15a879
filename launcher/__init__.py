"""The self-contained executable: MicroPython with the client, and CPython behind it in one file.

port/ sysio/     in C: MicroPython's main and options, and the module of system calls
boot.py          frozen: what the executable does first
unpack.py        frozen: unpacks the CPython runtime and executes it
manifest.py      which modules are frozen
source.py        finds MicroPython's source
runtime.py       makes the archive with the CPython runtime
build.py         `python -m launcher.build`: makes the file
"""

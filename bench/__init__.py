"""podwire beside the Go reference plugins, measured in one run.

Rules of the measurement:
- What is compared is interleaved: one call of each, then the next call of each, and who begins
  changes from round to round. A machine that slows down slows both.
- A call of a plugin is a whole process, from fork to exit, with stdin and stdout as pipes.
- Ratios count, of medians and of pairs that ran next to each other. Absolute times belong to the
  machine they were taken on.
- Nothing is left, however the run ends: namespaces and files belong to the process alone.
- A run is bounded: on a busy machine a scenario takes fewer samples, and the tables say how many.

    measure     one call, timed; the order of calls
    namespaces  network namespaces and files that vanish with the process
    contenders  which executables are compared, and with which configuration
    pods        VERSION, ADD and DEL as processes
    ipam        adding and releasing an address at 10 to 60,000 reservations
    profiling   where the time of one ADD goes
    results     what was measured, as data and as JSON
    statistic   medians and ratios
    report      tables for a terminal, and docs/performance.md
"""

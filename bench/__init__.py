"""podwire beside the Go reference plugins, measured in one run.

Rules of the measurement:
- What is compared is interleaved: one call of each, then the next call of each, and who begins
  changes from round to round. A machine that slows down slows both.
- A call of a plugin is a whole process, from fork to exit, with stdin and stdout as pipes.
- What a call leaves to the kernel, a deleted link, is done before the next call begins.
- Ratios count, of medians and of pairs that ran next to each other. Absolute times belong to the
  machine they were taken on.
- Nothing is left, however the run ends: namespaces, files and agents belong to the process alone.
- A run is bounded: on a busy machine a scenario takes fewer samples, and the tables say how many.

    measure     calls, timed; the order of many
    namespaces  network namespaces and files that vanish with the process
    contenders  which executables are compared, and with which configuration
    agents      the agent that serves a contender: started, looked at, ended
    sites       two pods that traffic flows between
    byhand      such pods, made with iproute2
    plugged     such pods, made by plugins
    iperf       iperf3 between them
    nodes       a contender's node, with sandboxes for its pods
    pods        VERSION, STATUS, ADD, CHECK and DEL, one after the other
    crowd       32 calls at once; one more pod on a full node
    chain       a pod with host ports and a bandwidth: one call, or a chain of plugins
    throughput  TCP and small packets: on one node, by route, by VXLAN
    connections connections a second through a host port, by the number of mapped pods
    peers       the first ADD of a node that has thousands of peers
    cluster     an agent beside an API server that has thousands of Nodes; clusterplane is that,
                clusteragent the agent, and clusterwatchers are many agents' watches
    sandboxes   RunPodSandbox and StopPodSandbox of a real containerd, on a sandboxes_node
    demand      the agent that the first call starts
    soak        10,000 pods through one agent
    ipam        adding and releasing an address at 10 to 60,000 reservations
    scenarios   all of these by name, and a run of some
    profiling   where the time of one ADD goes
    results     what was measured, as data and as JSON
    statistic   medians and ratios
    tables, rates, clustertables, sandboxes_table, goals, report, plot
                what a reader sees: a terminal, docs/performance.md and .svg
"""

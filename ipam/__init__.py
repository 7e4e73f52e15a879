"""Address management: a host-local allocator and the routes between nodes."""

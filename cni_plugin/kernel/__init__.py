"""The node's kernel: network namespaces, links, addresses, routes, sysctls.

The only package that imports pyroute2, and of that only the message classes: they are encoded and
decoded here, and travel over podwire's own sockets, several in one send.
"""

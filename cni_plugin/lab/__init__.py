"""A lab: network namespaces that stand for nodes, with real calls of the plugin in them."""

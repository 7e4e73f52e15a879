"""The harness of the tests: namespaces, the plugin, real clients. Nothing here is a test."""

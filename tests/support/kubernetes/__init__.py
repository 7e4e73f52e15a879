"""A whole Kubernetes cluster for tests: `cluster.Cluster` has the parts together."""

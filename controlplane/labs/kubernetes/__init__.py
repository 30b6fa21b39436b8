"""A real Kubernetes control plane on loopback whose nodes and pods are played, and say so."""

"""A real Kubernetes node on one bare Linux machine. Standard library only: it runs before `make install`."""

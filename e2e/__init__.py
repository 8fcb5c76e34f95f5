"""End-to-end scenarios against a real kubelet, and the node they run on when the machine has no cluster of its own."""

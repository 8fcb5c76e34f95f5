"""A small language model that trains in minutes on a CPU, for demos and tests."""

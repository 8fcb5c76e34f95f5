"""Load and figures: a server's over HTTP, and the engine's alone."""

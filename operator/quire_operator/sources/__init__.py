"""Where models are read from before anything is started: a hub, or a directory."""

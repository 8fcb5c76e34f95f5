"""What the config.json of each class of models calls its sizes, and what it leaves out."""

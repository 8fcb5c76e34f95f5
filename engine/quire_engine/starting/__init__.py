"""The parts of an engine's start, each a function of the settings and of what the parts before it found."""

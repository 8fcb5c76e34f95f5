"""One file for each kind of child: pure functions from an LLMService to a manifest, or to none."""

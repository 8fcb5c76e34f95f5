"""Images in prompts: files, limits, and the tokens that stand for them. The HTTP process shares it: no torch."""

"""Images in prompts: files, limits, and the tokens that stand for them. No torch here: the HTTP server process shares it."""

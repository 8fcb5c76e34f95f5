"""From token ids to text and back. No torch here: the HTTP server process shares it."""

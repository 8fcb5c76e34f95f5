"""From what is wanted and what is there to what is done and what is said about it."""

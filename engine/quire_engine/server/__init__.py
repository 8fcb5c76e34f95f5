"""The HTTP process: validates, tokenizes, streams. It never imports torch."""

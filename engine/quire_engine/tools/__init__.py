"""Calls of tools in what models write, a format a file. Pure: text in, events out."""

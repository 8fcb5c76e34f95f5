"""Answers that have a form: JSON of a schema, a match of a regex, one of some choices, a sentence of a grammar.

The matching is llguidance's. It is imported where it is used, so that the engine runs without it.
"""

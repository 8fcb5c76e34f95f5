"""Decoder-only models that Quire has no family for, run by transformers' own code."""

"""Quire's operator: turns an LLMService into everything that serves it."""

__version__ = "0.1.0"

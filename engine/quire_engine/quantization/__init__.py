"""Linears whose weights are quantized: one `LinearMethod` a format, and which linear has which."""

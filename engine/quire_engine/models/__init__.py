"""Model families, each a short composition of layers."""

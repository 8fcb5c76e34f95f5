"""How much memory a model needs, and how many tokens fit. Standard library only: the operator shares it."""

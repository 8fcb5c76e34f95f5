"""Adapters of low rank that requests choose by name (Hu et al., 2021, LoRA): read as peft writes them, and applied."""

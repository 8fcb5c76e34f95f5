"""Kernels for GPUs, in Triton. Only `kernels.choice` decides whether they are used: to import them imports Triton.

With TRITON_INTERPRET=1 set before the import they run on the CPU, slowly, which is how they are tested without a GPU.
"""

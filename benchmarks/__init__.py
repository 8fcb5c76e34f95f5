"""What is measured, with the command that measures it. Results lie in `results/` with the machine they are of."""

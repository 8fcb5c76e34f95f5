"""What the linears of a decode step cost by torch and by the library of kernels for CPUs, in turns.

`python -m benchmarks.linears` multiplies weights of the benchmark's model with 1 to 128 rows in bfloat16, on one
thread. What is written is the least processor time of each, so that other work on the machine matters little, and how
many times faster the library is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.cpu_model import SHAPE
from benchmarks.machine import describe_machine, write_result
from quire_engine.kernels import cpu

LAYERS = 8
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    """Measure, print a table and write results/linears.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    machine = describe_machine()
    if cpu.library is None:
        parser.error("the library is not in use here: it was not built, or the processor multiplies bfloat16 itself")
    torch.set_num_threads(1)
    hidden, wide = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    heads = SHAPE["num_attention_heads"] + 2 * SHAPE["num_key_value_heads"]
    shapes = [
        (hidden // SHAPE["num_attention_heads"] * heads, hidden),
        (hidden, hidden),
        (2 * wide, hidden),
        (hidden, wide),
    ]
    weights = [torch.randn(shape).bfloat16() for _ in range(LAYERS) for shape in shapes]
    figures = {}
    with torch.inference_mode():
        for rows in ROWS:
            inputs = {size: torch.randn(rows, size).bfloat16() for size in (hidden, wide)}
            routes = {"torch": functional.linear, "library": cpu.library.linear}
            least = dict.fromkeys(routes, float("inf"))
            for _ in range(options.repeats):
                for name, route in routes.items():
                    least[name] = min(least[name], milliseconds(route, inputs, weights) / LAYERS)
            ratio = round(least["torch"] / least["library"], 2)
            figures[f"{rows} rows"] = {name: round(value, 3) for name, value in least.items()} | {"ratio": ratio}
            print(
                f"{rows:>4} rows, ms a layer: torch {least['torch']:8.2f}   library {least['library']:8.2f}   {ratio}"
            )
    print(f"written to {write_result('linears', figures, machine)}")


def milliseconds(
    route: Callable[..., torch.Tensor], inputs: dict[int, torch.Tensor], weights: list[torch.Tensor]
) -> float:
    """Processor time of all products."""
    begun = time.thread_time()
    for weight in weights:
        route(inputs[weight.shape[1]], weight)
    return (time.thread_time() - begun) * 1000


if __name__ == "__main__":
    main()

"""transformers' generate as a process that answers loads.

One JSON list a line in (streams, output_len and the prompts' tokens), one object of figures a line out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria


class Clock(StoppingCriteria):
    """Notes when each token came, and stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def main() -> None:
    """Load the model in the directory and of the dtype of the command line, and answer until the input ends."""
    directory, dtype = sys.argv[1:]
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    for line in sys.stdin:
        streams, output_len, prompts = json.loads(line)
        firsts, later, begun = [], [], time.perf_counter()
        for at in range(0, len(prompts), streams):
            clock, started = Clock(), time.perf_counter()
            batch = torch.tensor(prompts[at : at + streams])
            settings: Any = {"max_new_tokens": output_len, "min_new_tokens": output_len, "do_sample": False}
            settings |= {"attention_mask": torch.ones_like(batch), "stopping_criteria": [clock], "pad_token_id": 0}
            model.generate(batch, **settings)
            firsts.append(clock.times[0] - started)
            later.append((clock.times[-1] - clock.times[0]) / max(1, output_len - 1))
        figures = {
            "output_throughput": len(prompts) * output_len / (time.perf_counter() - begun),
            "median_ttft_ms": statistics.median(firsts) * 1000,
            "median_tpot_ms": statistics.median(later) * 1000,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

"""What became of a request, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Times in seconds: `begun` by a monotonic clock, the others since then. `error` is empty for a whole answer."""

    prompt_len: int
    begun: float
    ttft: float = 0.0
    itls: list[float] = field(default_factory=list)
    latency: float = 0.0
    output_len: int = 0
    text: str = ""
    error: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None where there is none."""
        return (self.latency - self.ttft) / (self.output_len - 1) if self.output_len > 1 else None

    @property
    def arrived(self) -> list[float]:
        """When pieces of the answer came, by the same clock as `begun`."""
        times = [self.begun + self.ttft]
        for gap in self.itls:
            times.append(times[-1] + gap)
        return times

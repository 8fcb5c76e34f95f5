"""When requests are sent."""

from __future__ import annotations

import math
import random


def arrivals(number: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds from the beginning, in order. `rate` is requests a second, inf for all at once.

    Gaps have a gamma distribution of shape `burstiness`: 1 is a Poisson process, less comes in bursts, more evenly.
    They are scaled so that the last request comes when the rate says, whatever was drawn.
    """
    if math.isinf(rate):
        return [0.0] * number
    chance = random.Random(seed)
    times, now = [], 0.0
    for _ in range(number):
        now += chance.gammavariate(burstiness, 1 / (rate * burstiness))
        times.append(now)
    scale = number / rate / now
    return [time * scale for time in times]

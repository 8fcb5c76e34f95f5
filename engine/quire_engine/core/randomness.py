"""Randomness without state: every number is a pure function of a seed and a position.

So a request draws the same numbers however its prompt was chunked, batched or preempted.
The mixer is splitmix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """splitmix64's output function: an int of 64 bits for any int."""
    value = (value + _GOLDEN_GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for the token that `seed`'s request puts at `position`."""
    return (mix(mix(seed & _MASK) ^ position) >> 11) * 2.0**-53


def nth_seed(engine_seed: int, count: int) -> int:
    """The seed of the `count`-th request that came, where it came without one."""
    return mix(mix(engine_seed & _MASK) + count)

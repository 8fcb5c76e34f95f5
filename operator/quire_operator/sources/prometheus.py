"""A Prometheus that is asked by HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp

SECONDS = 30.0
"""How long an answer may take."""

Sample = tuple[Mapping[str, str], float]
"""Labels of a series, and its value."""


class PrometheusError(Exception):
    """Why there is no answer. Says nothing of the address, which may hold a password."""


async def query(session: aiohttp.ClientSession, address: str, expression: str) -> list[Sample]:
    """What `expression` is now. Raises PrometheusError."""
    try:
        async with (
            asyncio.timeout(SECONDS),
            session.post(f"{address.rstrip('/')}/api/v1/query", data={"query": expression}) as response,
        ):
            if response.status != 200:
                raise PrometheusError(f"it answers {response.status}")
            body = await response.json()
        return [(dict(series["metric"]), float(series["value"][1])) for series in body["data"]["result"]]
    except TimeoutError:
        raise PrometheusError(f"no answer within {SECONDS:.0f} s") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise PrometheusError(f"it cannot be reached ({type(error).__name__})") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PrometheusError(f"its answer is none of Prometheus's ({type(error).__name__})") from None

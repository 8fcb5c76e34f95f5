"""How busy the server is: a log line every 10 s while there is work, none while there is none."""

from __future__ import annotations

import asyncio
import logging

from quire_engine.server.service import Service

log = logging.getLogger(__name__)

STATS_SECONDS = 10.0


async def follow_throughput(service: Service) -> None:
    """Runs until it is cancelled."""
    before = service.metrics.token_totals()
    while True:
        await asyncio.sleep(STATS_SECONDS)
        now = service.metrics.token_totals()
        prompt, generation = ((new - old) / STATS_SECONDS for new, old in zip(now, before, strict=True))
        service.metrics.observe_rates(prompt, generation)
        stats = service.client.stats
        is_busy = now != before or stats.num_running or stats.num_waiting
        if is_busy and not service.settings.disable_log_stats:
            log.info(
                "prompt %.1f tok/s, generation %.1f tok/s, %d running, %d waiting, KV cache %.1f%% used, "
                "prefix cache hits %.1f%%",
                prompt,
                generation,
                stats.num_running,
                stats.num_waiting,
                100 * stats.kv_cache_usage,
                100 * stats.prefix_cache_hits / max(1, stats.prefix_cache_queries),
            )
        before = now

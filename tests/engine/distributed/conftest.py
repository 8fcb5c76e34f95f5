"""Ranks on CPU, in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.distributed.rank_pool import RankPool


@pytest.fixture(scope="package")
def started_pool() -> Iterator[RankPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        pool = RankPool()
        pool.start(3)
        yield pool
        pool.stop()


@pytest.fixture
def ranks(started_pool: RankPool, monkeypatch: pytest.MonkeyPatch) -> RankPool:
    """Has engines of this test find their ranks among processes that are there already."""
    monkeypatch.setattr("quire_engine.distributed.leader.launch", started_pool.launch)
    return started_pool

"""What is kept of downloads, whom it wakes, and how far a pod says that it is."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from quire_operator.builders.cached_model import Download
from quire_operator.builders.identity import PREFETCH_LABEL
from quire_operator.kubeapi.client import Client
from quire_operator.run import downloads as module
from quire_operator.run.downloads import Downloads

DOWNLOAD = Download("default", "models", "org/name", "main")


def item(name: str, version: int, owners: list[dict[str, str]], **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-of-{name}", "resourceVersion": str(version)}
    labels = {PREFETCH_LABEL: DOWNLOAD.key}
    return {"metadata": {**metadata, "labels": labels, "ownerReferences": owners}, "status": status}


def job(version: int, *names: str) -> dict[str, Any]:
    return item(DOWNLOAD.job_name, version, [{"name": name, "uid": f"uid-{name}"} for name in names])


@pytest.fixture
def woken() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def downloads(woken: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> Downloads:
    monkeypatch.setattr("quire_operator.kubeapi.client.login", lambda: None)
    return Downloads(Client(), (), woken.append)


def test_who_owns_a_job_is_known_both_ways(downloads: Downloads) -> None:
    downloads.learn(job(1, "one", "two"))
    seen = downloads.seen(DOWNLOAD)
    assert seen.is_owned_by("uid-one")
    assert [j["metadata"]["name"] for j in downloads.owned_by("uid-two")] == [DOWNLOAD.job_name]
    downloads.learn(job(2, "two"))
    assert downloads.owned_by("uid-one") == []
    assert not downloads.seen(DOWNLOAD).is_owned_by("uid-one")


def test_pods_of_an_earlier_job_of_the_name_are_passed_over(downloads: Downloads) -> None:
    downloads.learn(job(1, "one"))
    for name, uid in (("old", "another"), ("new", f"uid-of-{DOWNLOAD.job_name}")):
        downloads._pods[0].learn(item(name, 2, [{"name": DOWNLOAD.job_name, "uid": uid}], phase="Running"))
    assert [pod["metadata"]["name"] for pod in downloads.seen(DOWNLOAD).pods] == ["new"]


def bringing(revision: str, version: int, owner: str, **annotations: str) -> dict[str, Any]:
    download = Download("default", "models", "org/name", revision)
    found = item(download.job_name, version, [{"name": owner, "uid": f"uid-{owner}"}])
    told = {f"serving.quire.dev/{key}": text for key, text in {"model": f"org/name@{revision}", **annotations}.items()}
    found["metadata"] |= {"labels": {PREFETCH_LABEL: download.key}, "annotations": told}
    return found


def test_who_waits_for_another_commit_of_a_model_is_told_of_each_new_one_once(
    downloads: Downloads, woken: list[tuple[str, str]]
) -> None:
    one, two = "a" * 40, "b" * 40
    downloads.learn(bringing(one, 1, "one"))
    assert woken == []
    downloads.learn(bringing(two, 2, "two"))
    assert woken == [("default", "one")]
    downloads.learn(bringing(two, 3, "two"))
    downloads.learn(bringing("main", 4, "three"))
    assert woken == [("default", "one")]
    assert downloads.commits_of("default", "org/name") == {one, two}
    downloads.learn(bringing("main", 5, "three", commit="c" * 40))
    assert woken[1:] == [("default", "one"), ("default", "two")]
    assert downloads.commits_of("default", "org/name") == {one, two, "c" * 40}
    assert downloads.commits_of("other", "org/name") == set()
    assert downloads.commits_of("default", "org/other") == set()


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ({"bytes": 5, "total": 10}, (5, 10)),
        ({"bytes": 5, "total": None}, (5, None)),
        ({"bytes": "many"}, None),
        ([], None),
    ],
)
async def test_a_pod_is_believed_only_in_what_it_can_say(
    downloads: Downloads,
    woken: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    known: tuple[int, int | None] | None,
) -> None:
    async def progress(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps(answer))

    app = web.Application()
    app.router.add_get("/progress", progress)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr(module, "PROGRESS_PORT", runner.addresses[0][1])
    downloads.learn(job(1, "one"))
    key = ("default", DOWNLOAD.key)
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            await downloads._ask(session, key, "127.0.0.1")
    await runner.cleanup()
    found = downloads.seen(DOWNLOAD).progress
    assert (None if found is None else (found.bytes, found.total)) == known
    assert woken == ([("default", "one")] if known is not None else [])


async def test_a_pod_that_cannot_be_reached_is_only_not_told_of(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_PORT", 1)
    async with aiohttp.ClientSession() as session:
        await downloads._ask(session, ("default", DOWNLOAD.key), "127.0.0.1")
    assert downloads.seen(DOWNLOAD).progress is None

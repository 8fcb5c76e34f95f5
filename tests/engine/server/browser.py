"""Debian's Chromium, without a window, for pages that people look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

from e2e.cluster import packages
from e2e.cluster.errors import ClusterError

CHROMIUM = "/usr/bin/chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Installs it where it is missing; skips the test where it cannot be had."""
    try:
        packages.ensure({"chromium": CHROMIUM})
    except ClusterError as error:
        pytest.skip(f"no Chromium: {error}")
    with sync_playwright() as playwright:
        # as root, which containers are, Chromium starts only without its sandbox; /dev/shm is small in them
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()

"""A real Prometheus for a test, which scrapes what it is told to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.operator.api_client import eventually

Sample = tuple[dict[str, str], float]
INTERVAL = "500ms"


class PrometheusProcess:
    """Started at once, on a free port; `stop` ends it."""

    def __init__(self, program: Path, folder: Path, targets: list[dict[str, Any]], groups: list[Any]) -> None:
        """`targets` are scrape configs, `groups` those of its rules."""
        self._log = folder / "log"
        (folder / "rules.json").write_text(json.dumps({"groups": groups}))
        times = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), INTERVAL)
        config = {"global": times, "scrape_configs": targets, "rule_files": ["rules.json"]}
        (folder / "config.json").write_text(json.dumps(config))
        command = [
            program,
            f"--config.file={folder / 'config.json'}",
            f"--storage.tsdb.path={folder / 'series'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log)
        self.address = f"http://{eventually(self._listening)}"
        self._http = httpx.Client(base_url=self.address, timeout=20)
        eventually(lambda: self._http.get("/-/ready").is_success)

    def query(self, expression: str) -> list[Sample]:
        """Evaluate an expression now: labels and value of each series. Fails with what Prometheus says."""
        answer = self._http.get("/api/v1/query", params={"query": expression})
        assert answer.is_success, f"{expression}: {answer.text}"
        return [(sample["metric"], float(sample["value"][1])) for sample in answer.json()["data"]["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their state."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def stop(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait(timeout=10)

    def _listening(self) -> str | None:
        """Where it listens, from its log: the port is its own choice."""
        assert self._process.poll() is None, self._log.read_text()
        for line in self._log.read_text().splitlines():
            if 'msg="Listening on"' in line:
                return line.rpartition("address=")[2].strip()
        return None

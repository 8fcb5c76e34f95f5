"""Write dashboards and alerts from the code: `python docs/write_monitoring.py` (`make crds`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire_operator.monitoring.dashboards.fleet import fleet_dashboard
from quire_operator.monitoring.dashboards.service import service_dashboard
from quire_operator.monitoring.operator_alerts import operator_group
from quire_operator.settings import Settings
from quire_operator.yaml_output import yaml_text

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "charts" / "quire-operator"
OVERLAY = REPOSITORY / "manifests" / "overlays" / "monitoring"
NAMESPACE, RUNBOOK = "RELEASE-NAMESPACE", "RUNBOOK-URL"
"""What the template replaces: Helm cannot render the file, whose `{{ }}` are Prometheus' own."""


def files() -> dict[Path, str]:
    """What is generated, by its path in the chart."""
    boards = {f"{board.uid}.json": board.as_json() for board in (fleet_dashboard(), service_dashboard())}
    written = {Path("dashboards") / name: json.dumps(board, indent=1) + "\n" for name, board in boards.items()}
    groups = {"groups": [operator_group(NAMESPACE).as_manifest(RUNBOOK)]}
    return {**written, Path("alerts/operator.yaml"): yaml_text([groups])}


def rule_manifest() -> dict[str, Any]:
    """The operator's alerts as Kustomize has them, which replaces no text within a field."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "quire-operator", "namespace": "quire-system"},
        "spec": {"groups": [operator_group("quire-system").as_manifest(Settings().runbook_url)]},
    }


if __name__ == "__main__":
    for path, text in files().items():
        (CHART / path).parent.mkdir(exist_ok=True)
        (CHART / path).write_text(text)
    (OVERLAY / "alerts.yaml").write_text(yaml_text([rule_manifest()]))

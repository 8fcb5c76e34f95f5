"""Write the chart's dashboards and alerts from the code: `python docs/write_monitoring.py` (`make crds`)."""

from __future__ import annotations

import json
from pathlib import Path

from quire_operator.monitoring.dashboards.fleet import fleet_dashboard
from quire_operator.monitoring.dashboards.service import service_dashboard
from quire_operator.monitoring.operator_alerts import operator_group
from quire_operator.yaml_output import yaml_text

CHART = Path(__file__).resolve().parents[1] / "charts" / "quire-operator"
NAMESPACE, RUNBOOK = "RELEASE-NAMESPACE", "RUNBOOK-URL"
"""What the template replaces: Helm cannot render the file, whose `{{ }}` are Prometheus' own."""


def files() -> dict[Path, str]:
    """What is generated, by its path in the chart."""
    boards = {f"{board.uid}.json": board.as_json() for board in (fleet_dashboard(), service_dashboard())}
    written = {Path("dashboards") / name: json.dumps(board, indent=1) + "\n" for name, board in boards.items()}
    groups = {"groups": [operator_group(NAMESPACE).as_manifest(RUNBOOK)]}
    return {**written, Path("alerts/operator.yaml"): yaml_text([groups])}


if __name__ == "__main__":
    for path, text in files().items():
        (CHART / path).parent.mkdir(exist_ok=True)
        (CHART / path).write_text(text)

"""What Argo CD makes of an LLMService, and that the examples of docs/gitops.md name values that the chart has."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from lupa import LuaRuntime

from tests.docs.pages import REPOSITORY, blocks

SCRIPT = (REPOSITORY / "manifests/argocd/health.lua").read_text()
VALUES: dict[str, Any] = yaml.safe_load((REPOSITORY / "charts/quire-operator/values.yaml").read_text())


def health(suspend: bool = False, observed: int = 2, **conditions: str) -> tuple[str, str]:
    """Status and message that the script returns, as Argo CD would run it. A condition is its status and reason."""
    told = [
        {"type": kind, "status": text.split()[0], "reason": text.split()[1], "message": f"of {kind}"}
        for kind, text in conditions.items()
    ]
    body: dict[str, Any] = {"metadata": {"generation": 2}, "spec": {"suspend": suspend}}
    if told:
        body["status"] = {"observedGeneration": observed, "conditions": told}
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(body, recursive=True)
    found = lua.execute(SCRIPT)
    return found["status"], found["message"]


def test_nothing_is_known_before_the_operator_has_seen_the_spec() -> None:
    assert health()[0] == "Progressing"
    assert health(observed=1, Ready="True Serving")[0] == "Progressing"


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"Ready": "True Serving"}, ("Healthy", "Serving: of Ready")),
        ({"Ready": "True ScaledToZero"}, ("Healthy", "ScaledToZero: of Ready")),
        ({"Ready": "False Starting", "Reconciling": "True Starting"}, ("Progressing", "Starting: of Ready")),
        ({"Ready": "False OOMKilled", "Stalled": "True OOMKilled"}, ("Degraded", "OOMKilled: of Stalled")),
        ({"suspend": True, "Ready": "False Suspended"}, ("Suspended", "Suspended: of Ready")),
        (
            {"suspend": True, "Ready": "False Suspending", "Reconciling": "True Suspending"},
            ("Progressing", "Suspending: of Ready"),
        ),
    ],
)
def test_each_state_has_its_health(conditions: dict[str, Any], expected: tuple[str, str]) -> None:
    assert health(**conditions) == expected


def named(values: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether the chart has each of these values."""
    return all(
        key in known and (not isinstance(value, dict) or not known[key] or named(value, known[key]))
        for key, value in values.items()
    )


def test_the_examples_set_values_that_the_chart_has() -> None:
    documents = [d for b in blocks("yaml") if b.page == "gitops.md" for d in yaml.safe_load_all(b.text)]
    kinds = {document["kind"]: document["spec"] for document in documents}
    assert set(kinds) == {"Application", "GitRepository", "HelmRelease", "Kustomization"}
    assert named(kinds["Application"]["source"]["helm"]["valuesObject"], VALUES)
    assert named(kinds["HelmRelease"]["values"], VALUES)
    assert (REPOSITORY / kinds["Application"]["source"]["path"] / "Chart.yaml").exists()

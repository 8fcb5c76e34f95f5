"""A podTemplate that is malformed is named, and never a silent failure of the reconcile."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.api import InvalidLLMServiceError, parse_llmservice
from quire_operator.kubeapi.resources import DEPLOYMENTS
from tests.operator.api_client import Namespace, eventually
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"metadata": "x"}, "metadata is 'x': write an object"),
    ({"metadata": {"labels": ["a"]}}, "metadata.labels is ['a']: write an object"),
    ({"metadata": {"labels": {"a": 1}}}, "metadata.labels.a is 1: write a string, in quotes"),
    ({"spec": []}, "spec is []: write an object"),
    ({"spec": {"containers": ["engine"]}}, "spec.containers is ['engine']: write a list of objects"),
    ({"spec": {"containers": [{"name": "engine", "env": {"A": "b"}}]}}, "spec.containers[0].env is {'A': 'b'}"),
    ({"spec": {"volumes": {"name": "x"}}}, "spec.volumes is {'name': 'x'}: write a list of objects"),
]


@pytest.mark.parametrize(("template", "says"), MALFORMED, ids=[says.split(" is ")[0] for _, says in MALFORMED])
def test_what_is_malformed_is_named(template: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidLLMServiceError) as raised:
        parse_llmservice(manifest(podTemplate=template))
    assert f"spec.podTemplate: {says}" in str(raised.value)


@pytest.mark.control_plane
def test_a_malformed_template_is_a_condition_and_leaves_what_runs(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.change("llama", {"podTemplate": {"metadata": {"labels": ["a"]}}})
    condition = eventually(lambda: (c := namespace.condition("llama", "Accepted")) and c["status"] == "False" and c)
    assert condition["reason"] == "Invalid"
    assert "metadata.labels is ['a']" in condition["message"]
    assert namespace.find(DEPLOYMENTS, "llama")

"""What counts as a difference between what we applied and what is there."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.reconcile.difference import first_difference

SAME: dict[str, tuple[Any, Any]] = {
    "a default of the API server": ({"a": 1}, {"a": 1, "b": 2}),
    "a quantity in other words": (
        {"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}},
        {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
    ),
    "an extended resource": ({"limits": {"nvidia.com/gpu": "1"}}, {"limits": {"nvidia.com/gpu": 1}}),
    "a size limit": ({"emptyDir": {"sizeLimit": "8192Mi"}}, {"emptyDir": {"sizeLimit": "8Gi"}}),
    "a zero value that was left out": ({"readOnly": False, "x": "", "y": {}, "z": []}, {}),
    "an element that somebody added": (
        {"env": [{"name": "A", "value": "1"}]},
        {"env": [{"name": "Z"}, {"name": "A", "value": "1"}]},
    ),
    "another owner": ({"ownerReferences": [{"uid": "1"}]}, {"ownerReferences": [{"uid": "2"}, {"uid": "1"}]}),
}

DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "another value": ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
    "a missing field": ({"a": {"b": 1}}, {"a": {}}, "a.b"),
    "another order of plain values": ({"args": ["x", "y"]}, {"args": ["y", "x"]}, "args.0"),
    "a further argument": ({"args": ["x"]}, {"args": ["x", "y"]}, "args"),
    "a missing element": ({"env": [{"name": "A"}]}, {"env": [{"name": "B"}]}, "env.0"),
    "another quantity": ({"requests": {"cpu": "1"}}, {"requests": {"cpu": "2"}}, "requests.cpu"),
    "text that looks like a quantity elsewhere": ({"value": "1000m"}, {"value": "1"}, "value"),
    "a zero that is something else": ({"replicas": 0}, {"replicas": 1}, "replicas"),
}


@pytest.mark.parametrize(("desired", "live"), SAME.values(), ids=SAME.keys())
def test_is_the_same(desired: Any, live: Any) -> None:
    assert first_difference(desired, live) is None


@pytest.mark.parametrize(("desired", "live", "path"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_is_different(desired: Any, live: Any, path: str) -> None:
    assert first_difference(desired, live) == path

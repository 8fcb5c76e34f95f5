"""The strategic merge behaves as `kubectl patch --type=strategic` does."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from quire_operator.builders.strategic_merge import merge

BASE: dict[str, Any] = {
    "containers": [
        {
            "name": "engine",
            "image": "a",
            "args": ["--x"],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "ports": [{"name": "http", "containerPort": 8000}],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
    "tolerations": [{"key": "a"}],
    "nodeSelector": {"a": "1", "b": "2"},
}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "maps are merged": ({"nodeSelector": {"b": "3", "c": "4"}}, {"nodeSelector": {"a": "1", "b": "3", "c": "4"}}),
    "null removes a field": ({"nodeSelector": {"a": None}}, {"nodeSelector": {"b": "2"}}),
    "plain lists are replaced": ({"tolerations": [{"key": "z"}]}, {"tolerations": [{"key": "z"}]}),
    "a volume's source is replaced": (
        {"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}]},
        {"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}]},
    ),
    "a new element is appended": (
        {"volumes": [{"name": "more", "emptyDir": {}}]},
        {"volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "more", "emptyDir": {}}]},
    ),
    "$patch: delete removes an element": ({"volumes": [{"name": "tmp", "$patch": "delete"}]}, {"volumes": []}),
    "$patch: replace replaces a map": ({"nodeSelector": {"$patch": "replace", "z": "1"}}, {"nodeSelector": {"z": "1"}}),
}


@pytest.mark.parametrize(("patch", "expected"), CASES.values(), ids=CASES.keys())
def test_case(patch: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merge(BASE, patch) == {**BASE, **expected}


def test_containers_are_merged_by_name_down_to_their_lists() -> None:
    patch = {
        "containers": [
            {
                "name": "engine",
                "args": ["--y"],
                "env": [{"name": "B", "valueFrom": {"x": 1}, "value": None}, {"name": "C", "value": "3"}],
                "ports": [{"containerPort": 8000, "protocol": "TCP", "name": "web"}, {"containerPort": 9000}],
                "volumeMounts": [{"name": "other", "mountPath": "/tmp"}],
            }
        ]
    }
    (container,) = merge(BASE, patch)["containers"]
    assert container["image"] == "a"
    assert container["args"] == ["--y"]
    assert container["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "valueFrom": {"x": 1}},
        {"name": "C", "value": "3"},
    ]
    assert [port.get("name") for port in container["ports"]] == ["web", None]
    assert container["volumeMounts"] == [{"name": "other", "mountPath": "/tmp"}]


def test_neither_side_is_changed_nor_shared() -> None:
    base, patch = copy.deepcopy(BASE), {"volumes": [{"name": "more", "emptyDir": {"a": {}}}]}
    result = merge(base, patch)
    result["volumes"][1]["emptyDir"]["a"]["b"] = 1
    result["containers"][0]["env"].append({})
    assert base == BASE
    assert patch == {"volumes": [{"name": "more", "emptyDir": {"a": {}}}]}

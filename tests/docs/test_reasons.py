"""docs/llmservice.md explains what the code can say, all of it and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from quire_operator.api import custom_resource_definition
from quire_operator.plan import acceptance
from tests.docs.pages import INSTALLING_PAGE, LLMSERVICE_PAGE, REPOSITORY, first_cells, rows, section
from tests.docs.reasons_in_code import engine_reasons, operator_reasons

NOT_BUILT = [field for field, _, _ in acceptance._LATER_IN_QUIRE]


def test_every_reason_is_explained_once_and_none_is_made_up() -> None:
    explained = first_cells(section(LLMSERVICE_PAGE, "## Reasons"))
    assert len(explained) == len(set(explained))
    assert set(explained) == operator_reasons() | engine_reasons()


def test_the_source_is_understood_well_enough_to_find_reasons_of_each_kind() -> None:
    assert operator_reasons() >= {"Serving", "RollingOut", "NotSupportedYet", "Invalid", "NameConflict", "OOMKilled"}
    assert operator_reasons() >= {"InvalidImageName", "ImagePullBackOff", "PodForbidden"}
    assert operator_reasons().isdisjoint({"ErrImagePull", "Ready", "True"})
    assert engine_reasons() >= {"RevisionNotFound", "InvalidFlag", "AddressInUse", "EngineFailed"}


def test_every_condition_is_explained() -> None:
    explained = first_cells(section(LLMSERVICE_PAGE, "## Conditions"))
    assert explained == [
        *("Ready", "Accepted", "Available", "Reconciling", "Stalled"),
        *("ModelCached", "Autoscaling", "Monitored"),
    ]
    types = _schema()["properties"]["status"]["properties"]["conditions"]["items"]["properties"]["type"]["description"]
    assert all(name in types for name in explained)


def test_every_column_of_kubectl_get_is_explained() -> None:
    (version,) = custom_resource_definition()["spec"]["versions"]
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert first_cells(section(LLMSERVICE_PAGE, "## Using it")) == columns


def test_the_fields_that_are_not_built_are_those_that_are_refused() -> None:
    listed = rows(section(LLMSERVICE_PAGE, "## Not built yet"))
    assert list(listed) == NOT_BUILT


@pytest.mark.parametrize("field", NOT_BUILT)
def test_kubectl_explain_says_which_fields_are_not_built(field: str) -> None:
    schema = _schema()
    for name in field.split("."):
        schema = schema["properties"][name]
    assert "Not supported yet" in schema["description"]


def test_every_value_of_the_chart_is_listed_with_its_default() -> None:
    values = yaml.safe_load((REPOSITORY / "charts/quire-operator/values.yaml").read_text())
    listed = rows(section(INSTALLING_PAGE, "## With Helm"))
    assert list(listed) == list(_leaves(values))
    for name, default in _leaves(values).items():
        if name != "resources":  # told in words
            assert listed[name] == (f"`{_shown(default)}`" if default != "" else ""), name


def _schema() -> dict[str, Any]:
    (version,) = custom_resource_definition()["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and name != "resources":
            found |= {f"{name}.{below}": leaf for below, leaf in value.items()}
        else:
            found[name] = value
    return found


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)

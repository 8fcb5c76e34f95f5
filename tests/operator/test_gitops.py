"""The examples of docs/gitops.md, on a real API server with the kinds of Argo CD and Flux."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.docs.pages import blocks
from tests.operator.api_client import ApiClient, eventually
from tests.operator.conftest import DEFINITIONS, is_gone, program_folder

pytestmark = pytest.mark.control_plane

KINDS = {
    "argocd-crds": "application-crd.yaml",
    "flux-source-crds": "source.toolkit.fluxcd.io_gitrepositories.yaml",
    "flux-kustomize-crds": "kustomize.toolkit.fluxcd.io_kustomizations.yaml",
    "flux-helm-crds": "helm.toolkit.fluxcd.io_helmreleases.yaml",
}
"""Folder of a module, and the file in it."""

EXAMPLES = [
    document for block in blocks("yaml") if block.page == "gitops.md" for document in yaml.safe_load_all(block.text)
]


@pytest.fixture(scope="module")
def plurals(api: ApiClient) -> Iterator[dict[str, str]]:
    """What the API server calls each of the kinds, which it has in this module alone."""
    found, paths = {}, []
    for folder, file in KINDS.items():
        definition = yaml.safe_load((program_folder(folder) / file).read_text())
        paths.append(f"{DEFINITIONS}/{definition['metadata']['name']}")
        api.apply(paths[-1], definition)
        spec = definition["spec"]
        found[spec["names"]["kind"]] = spec["names"]["plural"]
        served = next(version["name"] for version in spec["versions"] if version["storage"])
        eventually(functools.partial(_lists, api, f"/apis/{spec['group']}/{served}/{spec['names']['plural']}"))
    for namespace in ("argocd", "flux-system"):
        api.make_namespace(namespace)
    yield found
    for path in paths:
        api.request("DELETE", path)
        eventually(functools.partial(is_gone, api, path))


def _lists(api: ApiClient, path: str) -> bool:
    try:
        return "items" in api.request("GET", path)
    except httpx.HTTPStatusError:
        return False


def take(api: ApiClient, document: dict[str, Any], plural: str) -> None:
    """Raises httpx.HTTPStatusError for a value that is not allowed, and for a field that the kind does not have."""
    metadata = document["metadata"]
    path = f"/apis/{document['apiVersion']}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
    query = "?fieldManager=tests&dryRun=All&fieldValidation=Strict"
    api.request("PATCH", f"{path}{query}", document, "application/apply-patch+yaml")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda document: document["kind"])
def test_an_example_is_accepted_strictly(api: ApiClient, plurals: dict[str, str], example: dict[str, Any]) -> None:
    take(api, example, plurals[example["kind"]])
    wrong = copy.deepcopy(example)
    wrong["spec"]["intervall"] = "10m"
    with pytest.raises(httpx.HTTPStatusError):
        take(api, wrong, plurals[example["kind"]])

"""A node-local copy of a model: how pods get it, and from where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quire_operator.api import InvalidLLMServiceError
from quire_operator.builders.cached_model import download_of
from quire_operator.builders.network_policy import build_network_policy
from quire_operator.builders.pod import build_pod_template
from quire_operator.builders.prefetch_job import build_prefetch_job
from tests.operator.services import CIRCUMSTANCES, service

CACHED = replace(CIRCUMSTANCES, cached_revision="c0ffee")
TOKEN = {"source": "hf://org/name", "tokenSecretRef": {"name": "hf-token", "key": "token"}}
ON_NODES = {"local": {"hostPath": "/mnt/nvme/models"}}


def pod(circumstances: Any = CACHED, **cache: Any) -> dict[str, Any]:
    built = service(model=TOKEN, cache=cache)
    found: dict[str, Any] = build_pod_template(built, circumstances)["spec"]
    return found


def names(container: dict[str, Any], field: str) -> set[str]:
    return {item["name"] for item in container[field]}


def test_the_copy_is_made_from_the_claim_before_the_engine_which_reads_it_alone() -> None:
    spec = pod(claimName="models", **ON_NODES)
    (stage,), (engine,) = spec["initContainers"], spec["containers"]
    assert stage["command"] == [
        *("quire-engine", "prefetch", "org/name", "--revision=c0ffee", "--cache=/models/local", "--from=/models/cache")
    ]
    assert {"name": "cache", "mountPath": "/models/cache", "readOnly": True} in stage["volumeMounts"]
    assert {"name": "local", "mountPath": "/models/local"} in stage["volumeMounts"]
    assert "HF_TOKEN" not in names(stage, "env")
    assert {"name": "local", "mountPath": "/models/local", "readOnly": True} in engine["volumeMounts"]
    assert "cache" not in names(engine, "volumeMounts")
    variables = {variable["name"]: variable.get("value") for variable in engine["env"]}
    assert (variables["HF_HOME"], variables["HF_HUB_OFFLINE"]) == ("/models/local", "1")
    assert "--revision=c0ffee" in engine["args"]
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "local")
    assert volume["hostPath"] == {"path": "/mnt/nvme/models", "type": "DirectoryOrCreate"}


def test_without_a_claim_the_copy_is_downloaded_and_the_engine_still_needs_no_hub() -> None:
    spec = pod(CIRCUMSTANCES, local={"ephemeralVolume": {"size": "20Gi", "storageClassName": "nvme"}})
    (stage,), (engine,) = spec["initContainers"], spec["containers"]
    assert "--revision=main" in stage["command"]
    assert not any(argument.startswith("--from") for argument in stage["command"])
    assert "HF_TOKEN" in names(stage, "env")
    assert "HF_TOKEN" not in names(engine, "env")
    assert "HF_HUB_OFFLINE" in names(engine, "env")
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "local")
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"]["storage"] == "20Gi"
    assert claim["storageClassName"] == "nvme"
    assert download_of(service(model=TOKEN, cache={"local": {"hostPath": "/x"}}), None) is None


def test_the_copy_for_another_engine_may_be_in_any_format() -> None:
    built = service(model=TOKEN, engine={"type": "vllm", "image": "a:1"}, cache={"claimName": "models", **ON_NODES})
    (stage,) = build_pod_template(built, CACHED)["spec"]["initContainers"]
    assert "--any-format" in stage["command"]


def test_the_init_container_meets_restricted_pod_security() -> None:
    (stage,) = pod(claimName="models", **ON_NODES)["initContainers"]
    assert stage["securityContext"]["allowPrivilegeEscalation"] is False
    assert stage["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_job_knows_no_copy() -> None:
    built = service(model=TOKEN, cache={"claimName": "models", **ON_NODES})
    download = download_of(built, None)
    assert download is not None
    spec = build_prefetch_job(built, download, CIRCUMSTANCES)["spec"]["template"]["spec"]
    assert "initContainers" not in spec
    assert "local" not in names(spec, "volumes")
    assert {"name": "cache", "mountPath": "/models/cache"} in spec["containers"][0]["volumeMounts"]
    assert {"name": "HF_HOME", "value": "/models/cache"} in spec["containers"][0]["env"]


def ports_outside(circumstances: Any, **cache: Any) -> set[int]:
    policy = {"networkPolicy": {"allowedNamespaces": ["web"]}}
    found = build_network_policy(service(model=TOKEN, cache=cache, security=policy), circumstances)
    assert found is not None
    return {port["port"] for rule in found["spec"]["egress"] for port in rule.get("ports", [])} - {53, 5353}


def test_a_policy_lets_pods_out_only_while_they_copy_from_the_hub() -> None:
    assert ports_outside(CIRCUMSTANCES, **ON_NODES) == {80, 443}
    assert ports_outside(CACHED, claimName="models", **ON_NODES) == set()


def test_a_copy_of_a_claim_that_nobody_fills_is_refused() -> None:
    with pytest.raises(InvalidLLMServiceError, match="which prefetch: false leaves empty"):
        service(model=TOKEN, cache={"claimName": "models", "prefetch": False, **ON_NODES})


@pytest.mark.parametrize("path", ["mnt/models", "/mnt/../etc"])
def test_a_directory_is_named_from_the_root(path: str) -> None:
    with pytest.raises(InvalidLLMServiceError, match="not a directory of a node"):
        service(model=TOKEN, cache={"local": {"hostPath": path}})

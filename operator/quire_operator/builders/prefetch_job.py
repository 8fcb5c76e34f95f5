"""The Job that brings a model or an adapter onto the cache's claim before pods start."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from quire_operator import __version__
from quire_operator.api import API_VERSION, GROUP, KIND, LLMService
from quire_operator.builders.cached_model import Download
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.downloader import downloader
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import FIELD_MANAGER, MANAGED_BY_LABEL, PREFETCH_LABEL, Manifest, selector_labels
from quire_operator.builders.paths import CACHE_PATH
from quire_operator.builders.pod import CONTAINER, build_pod_template
from quire_operator.builders.service_account import service_account_name

PREFETCH_CONTAINER = "prefetch"
PROGRESS_PORT = 8001
WAITING_WILL_NOT_HELP = 3
"""Exit status of `quire-engine prefetch` for what stays as it is until somebody acts."""

ATTEMPT = f"{GROUP}/attempt"
"""Annotation: how many Jobs of this name were no help before, which tells how long the next one waits."""
AGAIN = f"{GROUP}/made-again"
"""Annotation: why what an earlier Job of this name had downloaded is not on the claim any more."""
COMMIT = f"{GROUP}/commit"
"""Annotation: the commit that is on the claim, written once the Job is done."""
BYTES = f"{GROUP}/bytes"
"""Annotation: the size of it."""
MODEL = f"{GROUP}/model"
"""Annotation: ORG/NAME@REVISION."""
KEEP = f"{GROUP}/keep"
"""Annotation: the commits that the Job leaves on the claim, with commas in between."""

_RETRIES = 5
_OF_PODS = (
    *("affinity", "dnsConfig", "dnsPolicy", "hostAliases", "hostNetwork", "imagePullSecrets", "nodeSelector"),
    *("priorityClassName", "runtimeClassName", "schedulerName", "securityContext", "tolerations"),
    *("automountServiceAccountToken", "enableServiceLinks"),
)
"""Fields that are the same as in the service's pods, since a volume may be bound to where its first pod runs."""

_OF_CONTAINER = ("envFrom", "imagePullPolicy", "securityContext")
_NOT_MOUNTED = ("shm",)


def build_prefetch_job(
    service: LLMService,
    download: Download,
    circumstances: Circumstances,
    *,
    keep: Collection[str] = (),
    attempt: int = 0,
    again: str | None = None,
    beside_pods: bool = False,
) -> Manifest:
    """The Job, as the first service that wants the download makes it. Others become owners of the same.

    `keep` are commits that somebody uses on this claim; `again` says what became of the download
    before; `beside_pods` where a claim is of one node.
    """
    labels = {
        "app.kubernetes.io/name": "quire",
        "app.kubernetes.io/component": "prefetch",
        "app.kubernetes.io/version": __version__,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        PREFETCH_LABEL: download.key,
    }
    template = build_pod_template(
        _without_copy(service), replace(circumstances, cached_revision=None, cached_adapters={})
    )
    theirs = service.spec.pod_template.get("metadata") or {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": download.job_name,
            "namespace": download.namespace,
            "labels": labels,
            "annotations": {
                MODEL: f"{download.repository}@{download.revision}",
                ATTEMPT: str(attempt),
                **({AGAIN: again} if again is not None else {}),
                **({KEEP: ",".join(sorted(keep))} if keep else {}),
            },
            **({"ownerReferences": [shared_owner_reference(service)]} if service.metadata.uid else {}),
        },
        "spec": {
            "backoffLimit": _RETRIES,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": PREFETCH_CONTAINER,
                            "operator": "In",
                            "values": [WAITING_WILL_NOT_HELP],
                        },
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                ]
            },
            "template": {
                "metadata": {
                    "labels": {**(theirs.get("labels") or {}), **labels},
                    "annotations": dict(theirs.get("annotations") or {}),
                },
                "spec": _pod(service, download, template["spec"], circumstances, keep, beside_pods),
            },
        },
    }


def shared_owner_reference(service: LLMService) -> Manifest:
    """One of several: the garbage collector removes the Job when all of its owners are gone."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": service.metadata.name, "uid": service.metadata.uid}


def _pod(
    service: LLMService,
    download: Download,
    pod: Manifest,
    circumstances: Circumstances,
    keep: Iterable[str],
    beside_pods: bool,
) -> Manifest:
    engine: dict[str, Any] = next(c for c in pod["containers"] if c["name"] == CONTAINER)
    key_of_requests = engine_of(service).api_key_variable
    container = {
        **downloader(service, circumstances.settings),
        **{field: engine[field] for field in _OF_CONTAINER if field in engine},
        "env": [variable for variable in engine["env"] if variable["name"] != key_of_requests],
        "name": PREFETCH_CONTAINER,
        "command": [
            *("quire-engine", "prefetch", download.repository),
            f"--revision={download.revision}",
            f"--cache={CACHE_PATH}",
            f"--progress-port={PROGRESS_PORT}",
            *(["--any-format"] if download.any_format else []),
            *(["--adapter"] if download.is_adapter else []),
            *_eviction(service, keep),
        ],
        "ports": [{"name": "progress", "containerPort": PROGRESS_PORT, "protocol": "TCP"}],
        "volumeMounts": [mount for mount in engine["volumeMounts"] if mount["name"] not in _NOT_MOUNTED],
    }
    spec: Manifest = {
        **{field: pod[field] for field in _OF_PODS if field in pod},
        # a failed pod stays, with the reason in its status
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [volume for volume in pod["volumes"] if volume["name"] not in _NOT_MOUNTED],
    }
    if beside_pods:
        spec["affinity"] = _beside_pods(service, spec.get("affinity") or {})
    account = pod.get("serviceAccountName")
    if account not in (None, service_account_name(service)):  # one of ours may go before the Job does
        spec["serviceAccountName"] = account
    return spec


def _beside_pods(service: LLMService, affinity: Manifest) -> Manifest:
    """Where pods of the service run, if any do: on another node the claim could not be had."""
    term = {"labelSelector": {"matchLabels": selector_labels(service)}, "topologyKey": "kubernetes.io/hostname"}
    near = affinity.get("podAffinity") or {}
    preferred = [
        *near.get("preferredDuringSchedulingIgnoredDuringExecution", []),
        {"weight": 100, "podAffinityTerm": term},
    ]
    return {**affinity, "podAffinity": {**near, "preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _without_copy(service: LLMService) -> LLMService:
    """The service as if it had no node-local copy, which a download is not for."""
    if service.spec.cache is None:
        return service
    cache = service.spec.cache.model_copy(update={"local": None})
    return service.model_copy(update={"spec": service.spec.model_copy(update={"cache": cache})})


def _eviction(service: LLMService, keep: Iterable[str]) -> list[str]:
    cache = service.spec.cache
    number = cache.keep_revisions if cache is not None else 0
    return [f"--keep-revisions={number}", *(f"--keep={commit}" for commit in sorted(keep))]

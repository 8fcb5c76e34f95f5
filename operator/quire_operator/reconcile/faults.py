"""What is wrong with a pod, in its own words and with the next step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from quire_operator.api import LLMService
from quire_operator.builders.downloader import MEMORY_LIMIT, REQUESTS
from quire_operator.builders.identity import TEMPLATE_HASH
from quire_operator.kubeapi.client import Object

_LONGEST = 700
_LONGEST_STOP_SECONDS = 300
"""What an engine that is stopped while it loads may take for that."""


@dataclass(frozen=True)
class Fault:
    """Why a pod does not serve."""

    reason: str
    message: str
    needs_action: bool
    """Waiting will not help: somebody has to change something."""

    lacking: tuple[str, ...] = ()
    """Resources that no node has free."""

    pod: str = ""
    """Name of the pod that finds no node."""


@dataclass(frozen=True)
class Subject:
    """Whose pods they are, for words that say what to change."""

    namespace: str
    wants: Mapping[str, str]
    """What each pod asks for, by resource."""

    has_last_words: bool
    """Whether its program ends with `Reason: what happened`."""

    less: str
    """What to do where no node has that much."""

    more_memory: str
    """What to do where it needs more than its `memory`."""

    labels: str = "spec.scheduling.nodeSelector and spec.resources.gpu.product"
    """The fields that ask for labels of a node."""

    startup_seconds: int | None = None
    """How long it may take to start; None for what ends by itself when it is done."""

    @staticmethod
    def engine(service: LLMService) -> Subject:
        """The pods that serve."""
        resources = service.spec.resources
        gpus = {resources.gpu.resource_name: str(service.spec.gpus_per_pod)}
        return Subject(
            service.metadata.namespace,
            {"cpu": resources.cpu, "memory": resources.memory, **gpus},
            has_last_words=service.spec.engine.type == "quire",
            less="Lower spec.resources, add a node, or free one",
            more_memory="raise spec.resources.memory",
            labels=_labels(service),
            startup_seconds=service.spec.probes.startup_seconds,
        )

    @staticmethod
    def prefetch(namespace: str) -> Subject:
        """The pods of a Job that downloads a model."""
        return Subject(
            namespace,
            {**REQUESTS, "memory": MEMORY_LIMIT},
            has_last_words=True,
            less="Add a node, or free one",
            more_memory="it is tried again",
        )


def prefetch_fault(namespace: str, pods: Iterable[Object]) -> Fault | None:
    """What is wrong with the pod that a Job made last; None while it works, or has done its work."""
    there = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    there.sort(key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), _name(pod)))
    return next(_faults(Subject.prefetch(namespace), there[-1]), None) if there else None


def pod_fault(service: LLMService, pods: Iterable[Object], newest: str | None) -> Fault | None:
    """The most telling fault of the pods that do not serve, those of the template with the hash `newest` first."""
    silent = [pod for pod in pods if not is_ready(pod) and not pod["metadata"].get("deletionTimestamp")]
    silent.sort(
        key=lambda pod: (template_hash(pod) != newest, pod["metadata"].get("creationTimestamp", ""), _name(pod))
    )
    subject = Subject.engine(service)
    faults = [fault for pod in silent for fault in _faults(subject, pod)]
    # one that needs somebody to act says more than one that may pass; otherwise the first
    return next((fault for fault in faults if fault.needs_action), faults[0] if faults else None)


def is_ready(pod: Object) -> bool:
    """Whether the pod is behind its Service."""
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in pod["status"].get("conditions") or []
    )


def template_hash(pod: Mapping[str, Any]) -> str | None:
    """Tells which template a pod is of; a template has it too."""
    found: str | None = (pod["metadata"].get("annotations") or {}).get(TEMPLATE_HASH)
    return found


def _faults(subject: Subject, pod: Object) -> Iterator[Fault]:
    status = pod["status"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        fault = _waiting(pod, container) or _terminated(subject, pod, container)
        if fault is not None:
            yield fault
    if status.get("phase") == "Failed" and status.get("reason"):
        text = _short(status.get("message") or "no further word")
        yield Fault(str(status["reason"]), f"pod {_name(pod)} was ended by its node: {text}", False)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") in ("Unschedulable", "SchedulerError"):
            yield _unschedulable(subject, pod, str(condition.get("message", "")))


def _waiting(pod: Object, container: Mapping[str, Any]) -> Fault | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, detail = str(waiting.get("reason", "")), _short(str(waiting.get("message", "")))
    name, image = _name(pod), container.get("image", "")
    match reason:
        case "InvalidImageName":
            text = f"{image!r} is not the name of an image: correct spec.engine.image"
        case "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" | "ErrImageNeverPull":
            # the kubelet says the same once by itself and once inside its back-off
            cause = detail.rpartition("ErrImagePull: ")[2]
            reason = "ImagePullBackOff"
            text = (
                f"pod {name} cannot pull {image}: {cause}. Check spec.engine.image, and for a private registry "
                "spec.podTemplate.spec.imagePullSecrets"
            )
        case "CreateContainerConfigError":
            text = f"pod {name} cannot be configured: {detail}. Create what is missing, or correct its name in spec"
        case "CreateContainerError" | "RunContainerError":
            text = _not_started(pod, container, detail)
        case _:
            return None
    return Fault(reason, text, True)


def _not_started(pod: Object, container: Mapping[str, Any], detail: str) -> str:
    what = f"pod {_name(pod)} cannot start {container.get('name')}: {detail}"
    return f"{what}. Check spec.engine.image and command, and spec.podTemplate"


def _terminated(subject: Subject, pod: Object, container: Mapping[str, Any]) -> Fault | None:
    now, before = ((container.get(state) or {}).get("terminated") for state in ("state", "lastState"))
    last = now or before
    if not last or container.get("ready") or (last.get("exitCode") == 0 and not _ends_too_soon(subject, container)):
        return None
    name = _name(pod)
    if last.get("reason") == "OOMKilled":
        text = f"pod {name} needed more than its {subject.wants['memory']} of memory: {subject.more_memory}"
        return Fault("OOMKilled", text, True)
    if last.get("reason") == "StartError":  # what RunContainerError is between two tries: there is no log of it
        return Fault("RunContainerError", _not_started(pod, container, _short(str(last.get("message", "")))), True)
    line = _last_line(str(last.get("message") or ""))
    told = re.match(r"([A-Z][A-Za-z0-9]+): (.+)", line) if subject.has_last_words else None
    if told and not told[1].endswith(("Error", "Exception", "Exit", "Interrupt", "Warning")):
        return Fault(told[1], f"pod {name}: {told[2]}", True)
    logs = f"kubectl logs -n {subject.namespace} {name} -c {container.get('name')}{'' if now else ' --previous'}"
    code = last.get("exitCode")
    words = line or ("no last word" if code else "it has nothing to run, or was stopped")
    text = f"pod {name} exited with code {code}: {words}. {_slow_start(subject, last)}`{logs}` has the rest"
    return Fault("EngineFailed", text, True)


def _ends_too_soon(subject: Subject, container: Mapping[str, Any]) -> bool:
    """Whether it ends without an error, and is started again for that: engines run until they are told to stop."""
    return subject.startup_seconds is not None and bool(container.get("restartCount"))


def _slow_start(subject: Subject, last: Mapping[str, Any]) -> str:
    """What to do where the kubelet lost patience. It does not say so, but the container's age then tells."""
    limit, begun, ended = subject.startup_seconds, last.get("startedAt"), last.get("finishedAt")
    if limit is None or not begun or not ended:
        return ""
    ran = (datetime.fromisoformat(str(ended)) - datetime.fromisoformat(str(begun))).total_seconds()
    if not limit <= ran <= limit + _LONGEST_STOP_SECONDS:
        return ""
    return (
        f"It was stopped after {ran:.0f} s, and spec.probes.startupSeconds is {limit}: raise that if the model takes "
        "longer to load. "
    )


def _unschedulable(subject: Subject, pod: Object, message: str) -> Fault:
    name, text = _name(pod), _short(message)
    missing = re.search(r'persistentvolumeclaim "([^"]+)" not found', message)
    if missing:
        text = f"pod {name} waits for claim {missing[1]}, which does not exist"
        next_step = "create it, or correct spec.cache.claimName or spec.model.source"
        return Fault("ClaimNotFound", f"{text}: {next_step}", True)
    lacking = sorted(set(re.findall(r"Insufficient ([^\s,.]+(?:\.[^\s,.]+)*)", message)))
    # the second is of a class that binds a claim once its pod has a node, and other nodes may have a volume for it
    no_volume = "didn't find available persistent volumes" in message and not lacking
    if no_volume or "unbound immediate PersistentVolumeClaims" in message:
        return Fault("ClaimPending", f"pod {name} waits for its claim: {text}", False)
    steps = []
    if "node affinity/selector" in message:
        steps.append(f"check {subject.labels}")
    if "untolerated taint" in message:
        steps.append("add to spec.scheduling.tolerations, or remove the taint")
    if "volume node affinity conflict" in message:
        steps.append("let pods run where their claim's volume is: `kubectl describe pv` says on which nodes")
    if lacking:
        wants = ", ".join(f"{subject.wants.get(resource, 'enough')} {resource}" for resource in lacking)
        # the scheduler looks for room only on nodes whose labels and taints admit the pod
        which = (
            f"no node that admits pod {name} has {wants} free" if steps else f"no node has {wants} free for pod {name}"
        )
        text = f"{which}: {text}. {subject.less}"
    elif steps:
        text = f"no node admits pod {name}: {text}. {_sentence(steps)}"
    else:
        text = f"no node accepts pod {name}: {text}"
    return Fault("Unschedulable", text, False, tuple(lacking), name)


def _labels(service: LLMService) -> str:
    """The fields that ask for labels of a node, with the labels; all that could where none of the spec's own does."""
    wishes, product = service.spec.scheduling, service.spec.resources.gpu.product
    fields = []
    if wishes.node_selector:
        pairs = ", ".join(f"{label}={value}" for label, value in wishes.node_selector.items())
        fields.append(f"spec.scheduling.nodeSelector ({pairs})")
    if product is not None and service.spec.gpus_per_pod:
        fields.append(f"spec.resources.gpu.product ({product})")
    if wishes.affinity:
        fields.append("spec.scheduling.affinity")
    return " and ".join(fields) or "nodeSelector and affinity in spec.podTemplate"


def _sentence(steps: list[str]) -> str:
    text = "; and ".join(steps)
    return text[0].upper() + text[1:]


def _last_line(text: str) -> str:
    """The engine writes one line; where it could not, the kubelet gives the end of the log."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _short(lines[-1]) if lines else ""


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _name(pod: Object) -> str:
    return str(pod["metadata"]["name"])

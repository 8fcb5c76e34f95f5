"""The CustomResourceDefinition of LLMService, generated from the models."""

from __future__ import annotations

from typing import Any

from quire_operator.api.llmservice import GROUP, KIND, PLURAL, VERSION, LLMService
from quire_operator.api.structural_schema import structural_schema
from quire_operator.yaml_output import yaml_text

_READY = '.status.conditions[?(@.type=="Ready")]'

_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Ready", "type": "string", "jsonPath": f"{_READY}.status"},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.source"},
    {"name": "Replicas", "type": "string", "jsonPath": ".status.ready", "description": "ready/wanted"},
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.gpus"},
    {"name": "Reason", "type": "string", "jsonPath": f"{_READY}.reason"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "URL", "type": "string", "jsonPath": ".status.url", "priority": 1},
    {"name": "Revision", "type": "string", "jsonPath": ".status.model.revision", "priority": 1},
)


def custom_resource_definition() -> dict[str, Any]:
    """The manifest, as a dict."""
    schema = structural_schema(LLMService)
    schema["properties"]["metadata"] = {"type": "object"}
    for field in ("apiVersion", "kind"):
        schema["properties"][field] = {"type": "string"}
    schema["properties"]["status"].pop("default", None)
    schema["required"] = ["spec"]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["llms"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [dict(column) for column in _COLUMNS],
                }
            ],
        },
    }


_GENERATED = "# Generated from operator/quire_operator/api by `quire-operator crd`: change those, then `make crds`.\n"


def crd_manifest(*, helm: bool = False) -> str:
    """The manifest as YAML. With `helm`, as a chart's template that an uninstall leaves in place."""
    manifest = custom_resource_definition()
    if helm:
        manifest["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    text = yaml_text([manifest])
    if helm:
        return f"{{{{- if .Values.crds.install }}}}\n{_GENERATED}{text}{{{{- end }}}}\n"
    return _GENERATED + text

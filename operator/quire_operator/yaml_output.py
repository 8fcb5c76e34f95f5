"""Manifests as YAML that people read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml


class _WithoutAnchors(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_text(manifests: Iterable[dict[str, Any]]) -> str:
    """The documents in their order, fields in theirs, no anchors."""
    documents = list(manifests)
    return yaml.dump_all(
        documents,
        Dumper=_WithoutAnchors,
        sort_keys=False,
        width=120,
        allow_unicode=True,
        explicit_start=len(documents) > 1,
    )

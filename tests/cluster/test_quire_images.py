"""An image's tag changes with what it is made of, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from e2e.cluster import quire_images
from e2e.cluster.locations import REPOSITORY
from e2e.cluster.quire_images import OPERATOR, assemble, content_hash


@pytest.fixture
def context(tmp_path: Path) -> Path:
    return assemble(OPERATOR, tmp_path / "context")


def test_the_context_holds_sources_and_nothing_generated(context: Path) -> None:
    assert (context / "operator" / "quire_operator" / "__init__.py").exists()
    assert (context / "engine" / "quire_engine" / "__init__.py").exists()
    assert not list(context.rglob("__pycache__"))
    assert not (context / "models").exists()


def test_times_do_not_change_the_tag_and_content_does(context: Path) -> None:
    before = content_hash(OPERATOR.dockerfile, context, {})
    file = context / "operator" / "quire_operator" / "__init__.py"
    os.utime(file, (1, 1))
    assert content_hash(OPERATOR.dockerfile, context, {}) == before
    file.write_text(file.read_text() + "# changed\n")
    assert content_hash(OPERATOR.dockerfile, context, {}) != before


def test_build_arguments_change_the_tag(context: Path) -> None:
    plain = content_hash(OPERATOR.dockerfile, context, {})
    assert content_hash(OPERATOR.dockerfile, context, {"TORCH_INDEX_URL": "https://example.com"}) != plain


def test_all_that_the_dockerfiles_copy_is_let_into_a_plain_docker_build() -> None:
    allowed = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for image in quire_images.ALL:
        for name in image.sources:
            assert f"!{name}" in allowed

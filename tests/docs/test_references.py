"""What the pages name exists: paths, make targets, commands, flags."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs.write_api import page as api_page
from docs.write_api import paths
from docs.write_engines import with_table
from docs.write_flags import with_tables
from quire_engine.reasoning.tags import TAGS
from quire_engine.tools.formats import FORMATS
from quire_operator.api import custom_resource_definition
from tests.docs.pages import PAGES, REPOSITORY, blocks

IDS = [page.name for page in PAGES]
TOP = "|".join(
    re.escape(name)
    for name in ("docs", "manifests", "charts", "crds", "e2e", "tests", "engine", "operator", "benchmarks", ".ci")
)
PATH = re.compile(rf"(?<![\w./-])((?:{TOP})/[\w./-]*[\w/])(?![\w/-]*[{{*])")
FILE = re.compile(r"`([A-Z][\w.]*\.(?:md|engine|operator)|LICENSE|Makefile|pyproject\.toml)`")
TEST = re.compile(r"`((?:tests|e2e)/[\w/]+\.py)::(\w+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
PROGRAMS = r"quire-engine|quire-operator|python3 -m e2e\.cluster"
COMMAND = re.compile(rf"\b({PROGRAMS}) ((?:bench (?=[a-z]))?[a-z]+)\b([^`\n#]*)")
MODULES = {
    "quire-engine": "quire_engine.cli",
    "quire-operator": "quire_operator.cli",
    "python3 -m e2e.cluster": "e2e.cluster",
}


def test_every_format_of_calls_and_of_reasoning_is_told() -> None:
    page = (REPOSITORY / "docs/tools.md").read_text()
    assert {*FORMATS, *TAGS} <= set(re.findall(r"`([a-z0-9_]+)`", page))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_path_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    named = {*PATH.findall(text), *FILE.findall(text)}
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = TEST.findall(page.read_text())
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (REPOSITORY / file).exists() or f"def {name}(" not in (REPOSITORY / file).read_text()
    ]
    assert missing == []


def test_each_row_of_the_comparison_is_shown_or_says_what_is_not_there() -> None:
    text = (REPOSITORY / "docs/compared.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 5]
    assert len(rows) > 40
    headings = {row for row in rows if row.endswith("| shown by |")}
    assert [row for row in rows if not (TEST.search(row) or "**" in row) and row not in headings] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_between_pages_leads_to_a_file(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_paths_and_targets_are_found_at_all() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert {"docs/llmservice.md", "manifests/samples/llama-8b-gpu.yaml"} <= set(PATH.findall(readme))
    assert {"CONTRIBUTING.md", "docs/engine.md"} <= set(LINK.findall(readme))
    assert "CHANGELOG.md" in FILE.findall((REPOSITORY / "CONTRIBUTING.md").read_text())
    assert {name for name, _, _ in _commands()} == set(MODULES)


def _commands() -> list[tuple[str, str, str]]:
    """Program, subcommand and the rest of the line, wherever a page shows one."""
    return sorted({found for page in PAGES for found in COMMAND.findall(page.read_text())})


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, str], str]:
    """The help of every command that is named."""
    found = {}
    for program, command in {(program, command) for program, command, _ in _commands()}:
        line = [sys.executable, "-m", MODULES[program], *command.split(), "--help"]
        result = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        assert result.returncode == 0, f"{program} {command}: {result.stderr}"
        found[program, command] = result.stdout
    return found


def test_every_command_and_its_flags_exist(helps: dict[tuple[str, str], str]) -> None:
    for program, command, rest in _commands():
        for flag in re.findall(r"(?<=\s)--[a-z-]+", rest):
            assert re.search(rf"{flag}\b", helps[program, command]), f"{program} {command} has no {flag}"


def test_the_tables_of_flags_are_those_of_the_code() -> None:
    page = (REPOSITORY / "docs/engine.md").read_text()
    assert with_tables(page) == page, "run `make crds`"


def test_the_table_of_engines_is_that_of_the_code() -> None:
    page = (REPOSITORY / "docs/llmservice.md").read_text()
    assert with_table(page) == page, "run `make crds`"


def test_the_reference_of_fields_is_that_of_the_code() -> None:
    assert (REPOSITORY / "docs/api.md").read_text() == api_page(), "run `make crds`"


def test_every_field_can_be_linked_to() -> None:
    (version,) = custom_resource_definition()["spec"]["versions"]
    fields = version["schema"]["openAPIV3Schema"]["properties"]
    named = [path for name in ("spec", "status") for path, _ in paths(fields[name], name)]
    anchors = re.findall(r'<a id="([^"]+)"></a>', api_page())
    assert len(anchors) == len(set(anchors))
    assert {"spec.engine.env.name", "spec.engine.env.value"} == {*named} - {*anchors}  # those are Kubernetes'
    assert {"spec.model.source", "spec.model.adapters.name", "status.plan.verdict"} <= {*anchors}


NOT_IN_SAMPLES = {
    "cache.local.hostPath": "needs a namespace that allows it; docs/cache.md has an example",
    "cache.prefetch": "false is for a claim that is filled by other means",
    "engine.metrics.path": "the usual one does",
    "engine.metrics.timePerOutputToken": "llama.cpp has no histogram of it",
    "engine.metrics.timeToFirstToken": "nor of this",
    "engine.speculative.model": "n-grams need none",
    "scheduling.runtimeClassName": "the class would have to be there, and clusters call theirs otherwise",
    "model.trustRemoteCode": "nothing to be copied without a thought",
}
"""Fields of the spec that no sample shows, and why."""


def test_every_field_of_the_spec_is_shown_in_a_sample() -> None:
    samples = [yaml.safe_load(file.read_text()) for file in (REPOSITORY / "manifests/samples").glob("*.yaml")]
    shown = {path for sample in samples for path in _written(sample["spec"])}
    (version,) = custom_resource_definition()["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    fields = {path.removeprefix("spec.") for path, _ in paths(spec, "spec")}
    missing = {field for field in fields if not any(f"{path}.".startswith(f"{field}.") for path in shown)}
    assert missing == {*NOT_IN_SAMPLES}, "write a sample that shows the field, or say above why there is none"


def _written(value: object, path: str = "") -> Iterator[str]:
    """The paths of all fields that are set."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _written(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from _written(item, path)
    else:
        yield path


def test_the_kustomize_overlay_names_things_that_the_base_has() -> None:
    (overlay,) = [block.text for block in blocks("yaml") if "kustomize.config.k8s.io" in block.text]
    base = (REPOSITORY / "manifests/base/kustomization.yaml").read_text()
    deployment = (REPOSITORY / "manifests/base/deployment.yaml").read_text()
    assert "manifests/base" in overlay
    assert "name: quire/operator" in overlay
    assert "name: quire/operator" in base
    assert "name: quire-operator" in deployment
    assert "        args:\n" in deployment

"""`quire-operator`: its commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quire_operator.api import custom_resource_definition
from quire_operator.cli import CRD_FILES, main
from quire_operator.settings import Settings, SettingsError, settings_from
from tests.operator.conftest import REPOSITORY
from tests.operator.services import manifest

SAMPLES = sorted((REPOSITORY / "manifests/samples").glob("*.yaml"))


def test_render_prints_the_children_of_every_service_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "services.yaml"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}
    file.write_text(yaml.safe_dump_all([manifest("a"), secret, manifest("b")]))
    main(["render", str(file), "--engine-image=my/engine:1"])
    text = capsys.readouterr().out
    documents = list(yaml.safe_load_all(text))
    assert [d["metadata"]["name"] for d in documents if d["kind"] == "Deployment"] == ["a", "b"]
    assert "my/engine:1" in text
    assert "&id" not in text


def test_render_prints_the_scaler_and_the_count_that_a_workload_starts_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scaled.yaml"
    file.write_text(yaml.safe_dump(manifest(autoscaling={"minReplicas": 2, "maxReplicas": 5})))
    main(["render", str(file), "--prometheus-address=http://prometheus:9090"])
    printed = capsys.readouterr()
    children = {child["kind"]: child for child in yaml.safe_load_all(printed.out)}
    assert children["Deployment"]["spec"]["replicas"] == 2
    assert children["ScaledObject"]["metadata"]["name"] == "llama-scaler"
    assert printed.err == ""
    main(["render", str(file)])
    printed = capsys.readouterr()
    assert "ScaledObject" not in printed.out
    assert "llama gets no scaler: PrometheusUnknown" in printed.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": {}}, "spec.modle: unknown field"),
        ({"replicas": 1, "autoscaling": {"maxReplicas": 2}}, "spec.replicas and spec.autoscaling are both set"),
        ({"model": {"kvCacheDtype": "fp8"}}, "NotSupportedYet"),
    ],
)
def test_render_says_what_is_wrong_with_a_file(tmp_path: Path, change: dict[str, object], words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(manifest(**change)))
    with pytest.raises(SystemExit) as ended:
        main(["render", str(file)])
    assert words in str(ended.value)


def test_a_file_without_a_service_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("a: b\n")
    with pytest.raises(SystemExit, match="holds no LLMService"):
        main(["render", str(tmp_path / "empty.yaml")])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_renders(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["render", str(sample)])
    is_suspended = yaml.safe_load(sample.read_text())["spec"].get("suspend", False)
    kinds = {child["kind"] for child in yaml.safe_load_all(capsys.readouterr().out)}
    assert bool(kinds & {"Deployment", "LeaderWorkerSet"}) is not is_suspended


def test_the_committed_crds_are_those_of_the_models(tmp_path: Path) -> None:
    main(["crd", "--write", str(tmp_path)])
    for file in CRD_FILES:
        assert (tmp_path / file).read_text() == (REPOSITORY / file).read_text(), f"{file}: run `make crds`"


def test_the_pure_commands_load_neither_kopf_nor_a_client(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump(manifest()))
    code = (
        "import sys; from quire_operator.cli import main; "
        f"main(['render', {str(file)!r}]); print({{'kopf', 'aiohttp'}} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("set()\n")


def test_help_explains_every_command() -> None:
    for arguments in (["--help"], ["run", "--help"], ["crd", "--help"], ["render", "--help"], ["plan", "--help"]):
        command = [sys.executable, "-m", "quire_operator.cli", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "usage: quire-operator" in result.stdout


def test_settings_come_from_the_environment_and_flags_win() -> None:
    environment = {
        "QUIRE_OPERATOR_ENGINE_IMAGE": "env/engine:1",
        "QUIRE_OPERATOR_NAMESPACES": "a, b",
        "QUIRE_OPERATOR_LEADER_ELECTION": "false",
        "QUIRE_OPERATOR_WORKERS": "5",
    }
    settings = settings_from(environment, workers=7, engine_image=None)
    assert settings == Settings(engine_image="env/engine:1", namespaces=("a", "b"), leader_election=False, workers=7)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"QUIRE_OPERATOR_WORKERS": "many"}, "QUIRE_OPERATOR_WORKERS is 'many': write a whole number"),
        ({"QUIRE_OPERATOR_WORKERS": "0"}, "--workers is 0: write at least 1"),
        (
            {"QUIRE_OPERATOR_ENGINE_IMAGE": "quire/engine:latest"},
            "--engine-image is 'quire/engine:latest': write a tag",
        ),
        ({"QUIRE_OPERATOR_ENGINE_IMAGE": "quire/engine"}, "--engine-image is 'quire/engine': write a tag"),
        ({"QUIRE_OPERATOR_LEADER_ELECTION": "maybe"}, "write true or false"),
        ({"QUIRE_OPERATOR_LOG_LEVEL": "loud"}, "write debug, info, warning or error"),
    ],
)
def test_a_bad_setting_is_named_with_what_to_write(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_from(environment)


def test_a_kubeconfig_that_is_not_there_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quire_operator.cli", "run", "--health-port=0"]
    environment = {"KUBECONFIG": str(tmp_path / "absent"), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode != 0
    assert "check KUBECONFIG" in result.stderr
    assert "Traceback" not in result.stderr


def test_rendering_is_the_same_in_every_process() -> None:
    code = (
        "import json; from tests.operator.services import *; from quire_operator.builders.desired import *; "
        "print(json.dumps(desired_objects(service(), CIRCUMSTANCES)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_the_description_of_a_field_tells_its_default() -> None:
    (version,) = custom_resource_definition()["spec"]["versions"]
    rollout = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rollout"]
    described = {name: field["description"] for name, field in rollout["properties"].items()}
    assert described["drainSeconds"].endswith(" Default: 180.")
    assert described["strategy"].endswith(" Default: RollingUpdate.")
    assert "Default:" not in described["progressDeadlineSeconds"]  # computed, so there is none to show
    assert "Default:" not in rollout["description"]

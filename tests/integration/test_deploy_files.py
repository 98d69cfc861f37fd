"""The files in deploy/ are what their own tools take, and name what the project has."""

import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from config.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = [
    pytest.param(document, id=f"{document['kind']}-{document['metadata']['name']}")
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kubernetes_takes_every_manifest(manifest):
    if manifest["apiVersion"].startswith("keda.sh/"):  # a type of KEDA's own, whose schema no package carries
        assert set(manifest["spec"]) >= {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"}
        return
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_every_scaled_deployment_is_there_and_its_figure_is_one_of_the_gateways():
    deployments = {one.values[0]["metadata"]["name"] for one in MANIFESTS if one.values[0]["kind"] == "Deployment"}
    scaled = [one.values[0] for one in MANIFESTS if one.values[0]["kind"] == "ScaledObject"]
    assert {one["spec"]["scaleTargetRef"]["name"] for one in scaled} < deployments
    for one in scaled:
        (trigger,) = one["spec"]["triggers"]
        assert trigger["metadata"]["valueLocation"] in {"waiting.edge", "waiting.cloud"}


def test_the_kustomization_names_every_file():
    listed = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}


def test_compose_takes_its_file():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run(
        [*command, str(DEPLOY / "compose.yaml")], check=False, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _variables():
    for service in COMPOSE["services"].values():
        yield from service.get("environment", {})
    for one in MANIFESTS:
        pod = one.values[0]["spec"].get("template", {}).get("spec", {})
        for container in pod.get("containers", []):
            yield from (variable["name"] for variable in container.get("env", []))


@pytest.mark.parametrize("variable", sorted({name for name in _variables() if "__" in name}))
def test_every_setting_that_a_file_changes_exists(variable):
    section, setting = variable.removeprefix("FIRSTDRAFT_").lower().split("__")
    assert setting in Settings.model_fields[section].annotation.model_fields


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's own checker is not installed")
def test_systemd_takes_every_unit(tmp_path):
    units = []
    for unit in sorted((DEPLOY / "systemd").iterdir()):
        # The checker wants the command and the file of settings to exist; only their paths are changed for it.
        text = unit.read_text().replace("/opt/firstdraft/bin/firstdraft", sys.executable)
        text = text.replace("User=firstdraft\n", "")
        units.append(tmp_path / unit.name.replace("@", "@1"))
        units[-1].write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaints = [line for line in checked.stderr.splitlines() if str(tmp_path) in line]
    assert not complaints, checked.stderr

"""What deploy/ says is what the server has: flags, routes, ports, files, extras."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from serving import Here
from steerlab.cli.serve import serve
from steerlab.testing import tiny

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parts():
    found = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8")))
    return {part["kind"]: part for part in found}


def flags() -> set[str]:
    app = typer.Typer()
    app.command()(serve)
    command = typer.main.get_command(app)
    return {name for option in command.params for name in option.opts}


def entry() -> list[str]:
    return json.loads(re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[1])


def test_the_image_is_built_from_what_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r'^ARG EXTRAS="(\w+)"$', DOCKERFILE, re.MULTILINE)[1] in extras
    copied = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in shlex.split(line)[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert entry()[:2] == ["steerlab", "serve"]
    assert {word for word in entry() if word.startswith("--")} <= flags()
    assert "USER steerlab" in DOCKERFILE


def test_the_pods_run_what_the_image_has(parts, tmp_path):
    pod = parts["Deployment"]["spec"]["template"]
    (server,) = pod["spec"]["containers"]
    words = server["args"]
    assert {word for word in words if word.startswith("--")} <= flags()
    assert "--shared" in words
    port = server["ports"][0]["containerPort"]
    assert str(port) == entry()[entry().index("--port") + 1]
    assert server["volumeMounts"][0]["mountPath"] == entry()[entry().index("--store") + 1]
    assert pod["spec"]["terminationGracePeriodSeconds"] > float(words[words.index("--drain") + 1])
    assert str(pod["spec"]["securityContext"]["runAsUser"]) in DOCKERFILE
    assert {env["name"] for env in server["env"]} == {"STEERLAB_API_KEY"}
    here = Here(tiny.engine("llama"), tmp_path)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert here.ask("GET", server[probe]["httpGet"]["path"]).status_code == 200
        assert server[probe]["httpGet"]["port"] == server["ports"][0]["name"]
    here.close()


def test_the_parts_name_each_other(parts):
    labels = parts["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert parts["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert parts["Service"]["spec"]["selector"] == labels
    assert parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert parts["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == parts["Deployment"]["metadata"]["name"]
    (volume,) = parts["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == parts["PersistentVolumeClaim"]["metadata"]["name"]
    assert parts["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]

"""The files in deploy/ speak of settings, metrics and paths that exist."""

import configparser
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastchat_rs.config import ServeConfig, load_config
from fastchat_rs.server.app import OPEN_PATHS
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.state import Limits, State
from where import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEPLOY = REPOSITORY / "deploy"
FIELDS = set(ServeConfig.__struct_fields__)
# Read by other parts of the package.
VARIABLES = {"FASTCHAT_MODELS", "FASTCHAT_CONFIG"}


@pytest.mark.parametrize("path", sorted(path for path in DEPLOY.iterdir()), ids=lambda path: path.name)
def test_settings_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    for variable in set(re.findall(r"\bFASTCHAT_[A-Z_]+", text)) - VARIABLES:
        assert variable.removeprefix("FASTCHAT_").lower() in FIELDS, variable
    for flag in re.findall(r"(?<=\s)--([a-z][a-z-]+)", "\n".join(re.findall(r"fastchat-rs serve.*", text))):
        assert flag.replace("-", "_") in FIELDS | {"help", "config"}, flag
    for route in re.findall(r"path: (/\w+)|:8000(/\w+)", text):
        assert "".join(route) in OPEN_PATHS


def image_environment(name: str) -> dict[str, str]:
    """What ENV of a Dockerfile sets for the server."""
    text = (DEPLOY / name).read_text("utf-8").replace("\\\n", " ")
    pairs = re.findall(r"\b(FASTCHAT_[A-Z_]+)=(\S+)", "\n".join(re.findall(r"^ENV (.*)$", text, re.MULTILINE)))
    return dict(pairs)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_images(name: str) -> None:
    text = (DEPLOY / name).read_text("utf-8")
    config = load_config(ServeConfig, {}, {**image_environment(name), "FASTCHAT_API_KEY": "k", "FASTCHAT_MODEL": "m"})
    assert f"EXPOSE {config.port}" in text and f"127.0.0.1:{config.port}/health" in text
    # As root nothing runs, and PID 1 gets the signal.
    assert re.search(r"^USER [1-9]", text, re.MULTILINE) and 'ENTRYPOINT ["fastchat-rs", "serve"]' in text
    extras = set(re.findall(r"\[([a-z,]+)\]\"", text)[0].split(","))
    assert extras <= set(
        tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    )


def test_the_configuration() -> None:
    config = load_config(ServeConfig, {}, {}, DEPLOY / "config.toml")
    assert config.keys


def test_the_unit() -> None:
    unit = configparser.ConfigParser(strict=False)
    # systemd's names are case-sensitive.
    setattr(unit, "optionxform", str)  # noqa: B010
    unit.read(DEPLOY / "fastchat-rs.service")
    service = unit["Service"]
    assert service["ExecStart"].split()[1] == "serve"
    # systemd must wait longer than the server drains.
    assert int(service["TimeoutStopSec"]) > ServeConfig(model="m").drain
    assert service["Restart"] == "on-failure"


def test_the_manifest() -> None:
    yaml = pytest.importorskip("yaml", reason="SKIPPED: PyYAML is not installed")
    kinds: dict[str, Any] = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > ServeConfig(model="m").drain
    (container,) = pod["containers"]
    names = {mount["name"] for mount in container["volumeMounts"]}
    assert names == {volume["name"] for volume in pod["volumes"]}
    assert kinds["Service"]["spec"]["selector"] == kinds["Deployment"]["spec"]["selector"]["matchLabels"]
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]
    assert labels["labels"] == kinds["Service"]["spec"]["selector"]
    # Ports and probes lead to what the server listens on and answers without a key.
    (port,) = container["ports"]
    assert port["containerPort"] == ServeConfig(model="m").port == int(labels["annotations"]["prometheus.io/port"])
    assert [one["targetPort"] for one in kinds["Service"]["spec"]["ports"]] == [port["name"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        assert container[probe]["httpGet"]["path"] in OPEN_PATHS
    # A value of the environment is read as the server reads it; secrets count as text.
    given = {one["name"]: one.get("value", "secret") for one in container["env"]}
    config = load_config(ServeConfig, {"model": container["args"][0]}, given | image_environment("Dockerfile"))
    assert config.host == "0.0.0.0" and config.api_key == ["secret"] and config.access_log


class _Engine:
    """Every metric of an engine, 0."""

    def __getattr__(self, name: str) -> int:
        return 0


def test_the_dashboard_s_metrics_exist() -> None:
    config = ServeConfig(model="m")
    state = State(config, Limits.of(config))
    engine = type("Engine", (), {"stats": _Engine})
    served: Any = type("Served", (), {"name": "m", "bridge": type("Bridge", (), {"engine": engine})})
    state.models["m"] = served
    text = Metrics(state).text().decode()
    known = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    families = {family.name for family in text_string_to_metric_families(text)}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    wanted = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"fastchat_\w+", target["expr"])
    }
    assert len(wanted) > 15
    # Counters with labels have no samples before the first event.
    missing = {name for name in wanted - known if re.sub(r"_(total|bucket)$", "", name) not in families}
    assert not missing
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])

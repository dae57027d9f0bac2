"""The files in deploy/ speak of settings, metrics and paths that exist."""

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastchat_rs.config import ServeConfig, load_config
from fastchat_rs.server.app import OPEN_PATHS
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.state import Limits, State
from where import REPOSITORY

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

"""The npm packages `openai` and `ai`, by node. Skipped loudly where node or the registry is absent."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from live import Live

HERE = Path(__file__).parent / "node"


def skipped(why: str) -> None:
    print(f"SKIPPED: {why}; the npm clients are not tried", file=sys.stderr)
    pytest.skip(why)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with its packages as the lock file has them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        skipped("node is not there")
    folder = tmp_path_factory.mktemp("node") / "project"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150)
    if installed.returncode:
        skipped(f"npm ci failed: {installed.stderr[-300:]}")
    return folder


@pytest.mark.parametrize("script", ["openai.mjs", "ai.mjs"])
def test_a_script(live: Live, project: Path, script: str) -> None:
    environment = {**os.environ, "BASE_URL": f"{live.url}/v1", "MODEL": live.model}
    ran = subprocess.run(["node", script], cwd=project, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["ok"] is True

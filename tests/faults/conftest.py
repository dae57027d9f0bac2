"""Faults: rude clients, too many of them, and processes that die. Each test prints its figure at the end of the run.

FASTCHAT_FAULTS=10 runs them ten times as large; by default all of them take less than three minutes on two cores.
"""

import gc
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

_FIGURES = pytest.StashKey[list[str]]()

Figure = Callable[[str], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Takes a line for the end of the run."""
    lines = request.config.stash.setdefault(_FIGURES, [])

    def tell(line: str) -> None:
        lines.append(f"{request.node.name}: {line}")

    return tell


@pytest.fixture(scope="session")
def scale() -> int:
    """How many times as large as by default."""
    return int(os.environ.get("FASTCHAT_FAULTS", "1"))


@pytest.fixture(scope="session", autouse=True)
def client() -> None:
    """Tests hold many connections, and measure the server and not the collector of their own process."""
    gc.collect()
    gc.freeze()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 32768 if hard == resource.RLIM_INFINITY else min(hard, 32768)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(_FIGURES, None):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)

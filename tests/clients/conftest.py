"""One live server for all clients; what their packages warn of is not ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from live import Live, serving
from where import models, need

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.clients)
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="session")
def live(demo_model: Path) -> Iterator[Live]:
    """The demo model, and MiniLM where it is there."""
    minilm = models() / "all-minilm-l6-v2"
    others = [str(minilm)] if minilm.exists() else []
    with serving(demo_model, *others, "--max-model-len", "2048") as server:
        yield server


@pytest.fixture
def embedder(live: Live) -> str:
    """The name of the embedding model."""
    return need(models() / "all-minilm-l6-v2").name

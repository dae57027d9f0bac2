"""One live server for the whole session; tests that need other settings start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from live import Live, serving

SETTINGS = ("--max-model-len", "2048", "--alias", "gpt-3.5-turbo", "--alias", "5080/llama3.2-vision:11b")


@pytest.fixture(scope="session")
def live(demo_model: Path) -> Iterator[Live]:
    """The demo model, with a heartbeat short enough to be seen."""
    with serving(demo_model, *SETTINGS, "--heartbeat", "0.2") as server:
        yield server

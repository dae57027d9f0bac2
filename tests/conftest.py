"""What all tests share."""

from pathlib import Path

import pytest

from where import DEMO, models, need


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The smallest real model."""
    return need(models() / DEMO, always_in_ci=True)

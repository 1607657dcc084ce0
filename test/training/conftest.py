"""What the tests of the flow head's training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.datasets import render
from training.settings import load_config

FLOW_TOY = Path(__file__).parents[2] / "training" / "config" / "flow_toy.yaml"


@pytest.fixture(scope="session")
def flow_config():
    """The toy configuration of training, and of the model that it trains."""
    return load_config(FLOW_TOY)


@pytest.fixture(scope="session")
def flow_folder(tmp_path_factory, flow_config):
    """Its rendered samples."""
    config, model = flow_config
    folder = tmp_path_factory.mktemp("flow_samples")
    render(folder, config.data, model, workers=1)
    return folder

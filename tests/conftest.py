"""Shared fixtures: the tiny networks of `tests/_dummies`, and one thread so that timings of the suite are steady."""

import pytest
import torch

from eenet.backbones import StagedBackbone
from tests._dummies import make_resnet, make_vit

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["vit", "resnet"])
def backbone(request: pytest.FixtureRequest) -> StagedBackbone:
    return {"vit": make_vit, "resnet": make_resnet}[request.param]()

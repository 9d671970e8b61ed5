"""Shared fixtures: the tiny networks of `tests/_dummies`, and one thread so that timings of the suite are steady."""

import pytest
import torch

from eenet.backbones import StagedBackbone
from eenet.runtime import ahead
from eenet.runtime.ahead import MachineCode
from eenet.runtime.trace import Traced
from tests._dummies import make_resnet, make_vit

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["vit", "resnet"])
def backbone(request: pytest.FixtureRequest) -> StagedBackbone:
    return {"vit": make_vit, "resnet": make_resnet}[request.param]()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was compiled; the graphs are run by torch instead."""
    names: list[str] = []

    def interpret(traced: Traced) -> MachineCode:
        names.append(traced.name)
        module = traced.program.module()
        return MachineCode(lambda tensors: list(module(*tensors)), {})

    monkeypatch.setattr(ahead, "compile_traced", interpret)
    return names

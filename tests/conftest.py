"""Shared fixtures: tiny networks, blank figures, and one thread so that timings of the suite are steady."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

from eenet.backbones import StagedBackbone
from eenet.runtime import ahead
from eenet.runtime.ahead import MachineCode
from eenet.runtime.codes import code_of
from eenet.runtime.trace import Traced
from tests._dummies import make_resnet, make_vit

torch.set_num_threads(1)


DRAW = Figure.draw
settings.register_profile("quick", max_examples=30)


def pytest_configure(config: pytest.Config) -> None:
    """Fewer examples of each property where slow tests are left out."""
    settings.load_profile("quick" if config.option.markexpr else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that fork trainings come first: autograd refuses to run in a fork once its threads have started."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(autouse=True, scope="session")
def _blank_figures() -> Iterator[None]:
    """Figures are built and written, but their pixels are left blank: drawing takes half of a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", lambda figure, renderer: None)
        yield


@pytest.fixture(scope="module")
def drawn(_blank_figures: None) -> Iterator[None]:
    """The pixels of figures are drawn, for tests of what figures show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", DRAW)
        yield


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
        code = code_of(traced)
        return MachineCode(lambda tensors: list(code.module(*tensors)), code.reads)

    monkeypatch.setattr(ahead, "compile_traced", interpret)
    return names

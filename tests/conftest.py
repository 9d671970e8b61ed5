"""Shared fixtures: tiny networks, blank figures, and one thread so that timings of the suite are steady.

Nothing heavy is imported with this file: the process that deals tests to others reads it too, and they wait for it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from eenet.backbones import StagedBackbone
    from eenet.runtime.ahead import MachineCode
    from eenet.runtime.trace import Traced


def pytest_configure(config: pytest.Config) -> None:
    """One thread, and fewer examples of each property where slow tests are left out, in a process that runs tests."""
    if config.option.dist != "no":
        return
    gc.disable()  # until all is imported
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    settings.register_profile("quick", max_examples=30)
    settings.load_profile("quick" if config.option.markexpr else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that fork trainings come first: autograd refuses to run in a fork once its threads have started."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


def pytest_collection_finish() -> None:
    """Leave what was imported to itself, and walk less often: going through its million objects takes long."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _blank_figures() -> Iterator[Callable[..., None]]:
    """Figures are built and written, but their pixels are left blank: drawing takes half of a tiny training.

    What would draw them is given.
    """
    from matplotlib.figure import Figure

    draw = Figure.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", lambda figure, renderer: None)
        yield draw


@pytest.fixture(autouse=True, scope="session")
def _unsynced() -> Iterator[None]:
    """Nobody waits for the disk: what tests write need not outlive the machine, and a tiny run waits eight times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def drawn(_blank_figures: Callable[..., None]) -> Iterator[None]:
    """The pixels of figures are drawn, for tests of what figures show."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", _blank_figures)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(params=["vit", "resnet"])
def backbone(request: pytest.FixtureRequest) -> StagedBackbone:
    from tests._dummies import make_resnet, make_vit

    return {"vit": make_vit, "resnet": make_resnet}[request.param]()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was compiled; the graphs are run by torch instead."""
    from eenet.runtime import ahead
    from eenet.runtime.ahead import MachineCode
    from eenet.runtime.codes import code_of

    names: list[str] = []

    def interpret(traced: Traced) -> MachineCode:
        names.append(traced.name)
        code = code_of(traced)
        return MachineCode(lambda tensors: list(code.module(*tensors)), code.reads)

    monkeypatch.setattr(ahead, "compile_traced", interpret)
    return names

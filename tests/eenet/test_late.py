"""Classes that get their base when an object is made, and folders that hide packages of eenet."""

import copy
import pickle
import sys
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

import datamodules
import eenet
from datamodules import Digits
from eenet import beside
from eenet.described import describe
from eenet.late import without
from lightning_modules import JointExits
from tests._dummies import make_network


def test_what_is_made_is_lightnings_and_what_is_opened_is_not() -> None:
    with without():
        data, routine = Digits(), JointExits(make_network())
    assert not isinstance(data, LightningDataModule)
    assert not isinstance(routine, LightningModule)
    made = Digits(), JointExits(make_network())
    assert isinstance(made[0], LightningDataModule)
    assert isinstance(made[1], LightningModule)
    assert isinstance(made[0], Digits)
    assert data.fingerprint("val") == made[0].fingerprint("val")
    assert routine.state_dict().keys() == made[1].state_dict().keys()
    assert describe(data) == describe(made[0])


def test_it_is_copied_and_pickled_as_what_it_is() -> None:
    data = Digits(batch_size=7)
    for again in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert type(again) is type(data)
        assert again.batch_size == 7


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that is found before eenet, with nothing of eenet's data modules imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    for name in [name for name in sys.modules if name.partition(".")[0] == "datamodules"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize("kind", ["package", "namespace", "module"])
def test_what_has_the_same_name_hides_nothing(kind: str, project: Path) -> None:
    if kind == "module":
        (project / "datamodules.py").write_text("")
    else:
        (project / "datamodules").mkdir()
        (project / "datamodules" / "mine.py").write_text("class Mine: ...")
    if kind == "package":
        (project / "datamodules" / "__init__.py").write_text("")
    lines = beside.settle()
    assert len(lines) == (kind != "namespace")  # which hides nothing
    assert all("eenet.data.*" in line and ("my_file.MyClass" in line) == (kind == "package") for line in lines)
    if kind != "module":
        assert import_module("datamodules.mine").Mine.__module__ == "datamodules.mine"
    assert import_module("datamodules").Digits is eenet.data.Digits
    assert eenet.data.Digits().num_classes == 10
    assert beside.settle() == []


def test_python_keeps_a_package_of_that_name_that_was_imported_before(project: Path) -> None:
    (project / "datamodules.py").write_text("MINE = 1\nclass Digits: ...")
    assert import_module("datamodules").MINE == 1
    with pytest.warns(UserWarning, match=r"eenet\.data\.\*; rename it"):
        _ = eenet.open_run
    assert import_module("datamodules").MINE == 1
    assert eenet.data.Digits().num_classes == 10


def test_aliases_are_the_classes() -> None:
    assert eenet.data.Digits is datamodules.Digits
    assert set(dir(eenet.data)) == set(datamodules.__all__)
    with pytest.raises(AttributeError):
        _ = eenet.data.Nothing

"""Classes that get their base when an object is made, and folders that hide packages of eenet."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

import datamodules
import eenet.data
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


def test_a_folder_of_the_same_name_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datamodules").mkdir()
    (tmp_path / "datamodules" / "__init__.py").write_text("")
    (tmp_path / "datamodules" / "mine.py").write_text("class Mine: ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "datamodules"]:
        monkeypatch.delitem(sys.modules, name)
    (line,) = beside.settle()
    assert "eenet.data.*" in line
    assert "datamodules.my_file.MyClass" in line
    from datamodules.mine import Mine

    assert Mine.__module__ == "datamodules.mine"
    assert eenet.data.Digits().num_classes == 10
    assert beside.settle() == []


def test_aliases_are_the_classes() -> None:
    assert eenet.data.Digits is datamodules.Digits
    assert set(dir(eenet.data)) == set(datamodules.__all__)
    with pytest.raises(AttributeError):
        _ = eenet.data.Nothing

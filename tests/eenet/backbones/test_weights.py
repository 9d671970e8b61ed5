from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eenet.backbones.weights import load_weights
from eenet.errors import UserError


def model(classes: int = 3, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


def same(first: nn.Module, second: nn.Module) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)]


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "module"])
def test_every_usual_form_of_file_loads(form: str, tmp_path: Path) -> None:
    saved, loaded = model(), model()
    state = saved.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "module":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save({form: state, "epoch": 7}, path)
    assert not all(same(saved, loaded))
    load_weights(loaded, path)
    assert all(same(saved, loaded))


def test_a_head_for_other_classes_stays_untrained_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, loaded = model(classes=5), model(classes=3)
    head = loaded[2].weight.clone()
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    load_weights(loaded, tmp_path / "w.pth")
    assert torch.equal(loaded[2].weight, head)
    assert torch.equal(loaded[0].weight, saved[0].weight)
    assert "2 has other classes" in caplog.text


def test_tied_weights_need_no_second_copy(tmp_path: Path) -> None:
    def tied() -> nn.ModuleDict:
        parts = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": nn.Linear(2, 5, bias=False)})
        parts["head"].weight = parts["embed"].weight
        return parts

    saved, loaded = tied(), tied()
    torch.save({"embed.weight": saved["embed"].weight.detach()}, tmp_path / "w.pth")
    load_weights(loaded, tmp_path / "w.pth")
    assert torch.equal(loaded["head"].weight, saved["head"].weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(width=6).state_dict(), "other shapes: 1.weight"),
        ({"0.weight": torch.zeros(4, 2)}, "missing or unknown names: 0.bias"),
        (model().state_dict() | {"extra": torch.zeros(1)}, "unknown names: extra"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (model(), "no file of plain tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        load_weights(model(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_and_missing_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weight file"):
        load_weights(model(), tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="no file of plain tensors"):
        load_weights(model(), tmp_path / name)

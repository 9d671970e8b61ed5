"""`eenet inspect` prints what a model's exits would cost, and refuses what has none."""

from pathlib import Path

import pytest
import torch
from torch import nn

from eenet import attach
from eenet.cli.main import main
from eenet.cli.stages import exportable
from eenet.errors import UserError
from eenet.runtime.trace import Traced

MODEL = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=3):
        convolutions = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
        super().__init__(*convolutions, nn.Flatten(), nn.Linear(256, num_classes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODEL)
    return tmp_path


def test_stages_and_costs_are_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).state_dict()
    torch.save(states, "mine.pth")
    main(
        [
            "inspect",
            "mine.py:Net",
            "--input-shape",
            "[1,8,8]",
            "--num-classes",
            "5",
            "--weights",
            "mine.pth",
            "--formats=false",
        ]
    )
    said = capsys.readouterr().out
    first, second, head = 64 * 9 * 4, 64 * 9 * 16, 256 * 5
    assert f"{first + second + head:,} MACs in all" in said
    assert f"{first:,}" in said
    assert f"{100 * first / (first + second + head):.1f}" in said
    assert "proposal: exits: [0]" in said


CONFIG = """
model:
  class_path: lightning_modules.DecoupledExits
  init_args:
    backbone_checkpoint: runs/nobody_trained_this
    network:
      class_path: eenet.network.EarlyExitNetwork
      init_args:
        backbone:
          class_path: eenet.backbones.Traced
          init_args: {model: "mine.py:Net", num_classes: 10, input_shape: [1, 8, 8]}
        exits: [0]
        gate: {class_path: eenet.gates.ConfidenceGate}
data: {class_path: datamodules.Digits}
"""


@pytest.mark.slow
def test_a_configuration_is_inspected_before_its_run_exists(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(CONFIG)
    main(["inspect", "mine.yaml"])
    said = capsys.readouterr().out
    assert f"{64 * 9 * 4 + 64 * 9 * 16 + 256 * 10:,} MACs in all" in said
    assert "export as torch: yes" in said
    assert "export as onnx: yes" in said


def test_a_format_says_whether_it_takes_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    network = attach(nn.Sequential(*layers), torch.randn(4, 8), exits=["0"]).eval()
    with monkeypatch.context() as patch:
        patch.setattr("eenet.exporting.torch_program.OPERATORS", frozenset({"aten.linear.default"}))
        problems = exportable(network, torch.randn(3, 8))
    assert "aten.relu.default" in problems["torch"]
    assert "--format onnx" in problems["torch"]
    assert problems["onnx"] == ""

    def refuse(step: Traced) -> None:
        raise UserError("format", "onnx", f"has no {step.name}")

    monkeypatch.setattr("eenet.exporting.onnx_program.translate", refuse)
    assert exportable(network, torch.randn(3, 8)) == {"torch": "", "onnx": "has no exit_0"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "must be timm:NAME"),
        (["digits/nothing"], "is no configuration that is there"),
        (["no_model.yaml"], "has no `model`"),
        (["mine.yaml", "--weights", "wrong.pth"], "in a configuration set the backbone's `pretrained`"),
        (["timm:resnet1"], "timm has no such model"),
        (["torchvision:resnet1"], "near it: resnet1"),
        (["mine.py:Nett", "--input-shape", "[1,8,8]"], "near it: Net"),
        (["mine.py:Net"], "give the shape of one input"),
        (["other.py:Net"], "there is no such file"),
        (["mine.py:Net", "--input-shape", "[1,8,8]", "--weights", "wrong.pth"], "another architecture"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), "wrong.pth")
    Path("mine.yaml").write_text(CONFIG)
    Path("no_model.yaml").write_text("data: {class_path: datamodules.Digits}")
    with pytest.raises(SystemExit) as end:
        main(["inspect", *args])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line

"""`eenet fit --model timm/NAME --data FOLDER --method jei_dnn`, and the same library by commands and by functions."""

import logging
from pathlib import Path

import pytest
import yaml

import eenet
from eenet.cli.main import main
from tests.cli.test_cli import QUIET, mistake
from tests.cli.test_own_images import write_digits

FEW = ["--epochs=1", "--image_size=32", "--pretrained=false", "--trainer.limit_train_batches=1", *QUIET]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "three"
    return write_digits(folder, train=range(20), val=range(80, 90), test=range(130, 140))


@pytest.mark.slow
def test_no_file_is_written_by_hand(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["fit", "--model", "timm/resnet18.a1_in1k", "--data", str(images), "--method", "decoupled"]
    main([*asked, *FEW])
    run = Path("runs/three_resnet18_decoupled")
    values = yaml.safe_load((run / "config.yaml").read_text())
    backbone = values["model"]["init_args"]["network"]["init_args"]["backbone"]
    assert backbone["class_path"].endswith(".ResNet")
    assert (backbone["init_args"]["num_classes"], backbone["init_args"]["image_size"]) == (3, 32)
    before = Path(f"{run}_backbone/checkpoints/last.ckpt").read_bytes()
    main([*asked, *FEW, "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert Path(f"{run}_backbone/checkpoints/last.ckpt").read_bytes() == before
    found = eenet.calibrate(run, budget=[0.9, 0.01])
    main(["calibrate", str(run), "--budget", "0.9"])
    assert found.points["budget-0.9"].to_dict() == eenet.open_run(run).network.points["budget-0.9"].to_dict()
    assert [error.field for error in found.unmet] == ["budget"]
    rows = eenet.predict(run, "rows.csv", point="budget-0.9")
    assert rows.samples == 30
    results = eenet.evaluate(run, "budget-0.9")
    assert [row["name"] for row in results["operating_points"]] == ["budget-0.9"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "resnet18", "--data", "DATA"], "model = 'resnet18': must be timm/NAME"),
        (["--model", "timm/resnet18", "--data", "DATA", "--method", "guess"], "method = 'guess': must be one of"),
        (["--model", "timm/resnet18", "--data", "nowhere"], "data.root = 'nowhere'"),
        (["--model", "timm/resnet18"], "data = None: must be given"),
        (["--model", "timm/resnet18", "--data", "DATA", "--epochs", "0"], "epochs = 0: must be at least 1"),
        (["--model", "timm/resnet18", "--data", "DATA", "--epochs", "x"], "epochs = 'x': invalid int"),
        (
            ["--model", "timm/resnet18", "--data", "DATA", "--model.init_args.tradeof=1"],
            "tradeof = '1': is no argument",
        ),
        (["--model", "timm/test_resnet", "--data", "DATA", *FEW], "each meet another stage; stages end at"),
    ],
)
def test_bad_wishes_are_one_line_before_the_backbone_is_trained(
    images: Path,
    tmp_path: Path,
    args: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler holds the stream of an earlier test
    args = [str(images) if text == "DATA" else text for text in args]
    args = args if "--method" in args else [*args, "--method", "jei_dnn"]
    assert message in mistake(capsys, "fit", *args)
    assert not list(tmp_path.iterdir())

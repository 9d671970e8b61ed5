"""The command line in this process: configurations, run folders and users' mistakes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import eenet
from eenet.cli.main import main
from tests.cli.offline import SMALL_BERT, offline
from tests.datamodules.tiny_files import write_fashion, write_imagenet, write_tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
METHODS = [path for path in CONFIGS if path.parent.name not in ("overlays", "nlg")]


ELSEWHERE = (
    *("digits/vit_quee.yaml", "digits/vit_quantized_jei_dnn.yaml", "digits/vit_stopping.yaml"),
    *("digits/vit_zero_time_waste.yaml", "bbc_news/minilm_backbone.yaml", "ag_news/bert_backbone.yaml"),
    *(f"bbc_headlines/smollm2_{method}.yaml" for method in ("calm", "gates", "tuning", "layerskip")),
)
"""Configurations whose like tests of their method run, on fewer samples."""


def with_new_classes(paths: list[Path]) -> list[Any]:
    """Configurations, those of the digits first; slow where each class they name is named by one before."""
    named: set[str] = set()
    found = []
    for path in sorted(paths, key=lambda path: (path.parent.name != "digits", path)):
        classes = set(re.findall(r"class_path: ([\w.]+)", path.read_text()))
        name = str(path.relative_to(ROOT / "configs"))
        slow = classes <= named or name in ELSEWHERE
        found.append(pytest.param(path, id=name, marks=[pytest.mark.slow] if slow else []))
        named |= classes
    return found


EACH = pytest.mark.parametrize("path", with_new_classes(METHODS))
PRINTED = ("vit_jei_dnn.yaml", "vit_quee.yaml")
DIGITS = pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.parent.name == "digits" and path.name in PRINTED else [pytest.mark.slow])
        for path in METHODS
    ],
)
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
BACKBONE = "model.init_args.network.init_args.backbone"

TINY_BACKBONE = """
class_path: eenet.backbones.ViT
init_args:
  name: vit_tiny_patch16_224
  num_classes: 10
  image_size: 8
  in_channels: 1
  overrides: {patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2}
"""


def tiny(path: Path, method: str, folder: Path, **arguments: object) -> Path:
    """A configuration that trains in a second and shows nothing in TensorBoard, which takes as long again."""
    backbone = yaml.safe_load(TINY_BACKBONE)
    network = {"class_path": "eenet.network.EarlyExitNetwork", "init_args": {"backbone": backbone}}
    model = {"backbone": backbone} if method == "BackboneTraining" else {"network": network}
    config = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder),
            "max_epochs": 2,
            "limit_train_batches": 6,
            "log_every_n_steps": 2,
            "num_sanity_val_steps": 0,
            "logger": False,
        },
        "model": {"class_path": f"lightning_modules.{method}", "init_args": {**model, **arguments}},
        "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32}},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def mistake(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What Lightning's commands print for a user's mistake; see `failure`."""
    return failure(capsys, *args, *QUIET)


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What the command prints for a user's mistake: one error, status 2, no traceback."""
    with pytest.raises(SystemExit) as exit:
        main([*args])
    printed = capsys.readouterr().err
    assert exit.value.code == 2
    assert "Traceback" not in printed
    return printed


@pytest.fixture(scope="module")
def backbone_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "backbone"
    main(["fit", "--config", str(tiny(folder.parent / "b.yaml", "BackboneTraining", folder)), *QUIET])
    return folder


@pytest.fixture(scope="module")
def joint_run(backbone_run: Path) -> Path:
    folder = backbone_run.parent / "joint"
    arguments = {"backbone_checkpoint": str(backbone_run), "warmup_epochs": 1, "phase_batches": 2}
    main(["fit", "--config", str(tiny(folder.parent / "j.yaml", "JointExits", folder, **arguments)), *QUIET])
    return folder


def test_joint_training_starts_from_the_backbones_checkpoint(backbone_run: Path, joint_run: Path) -> None:
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (backbone_run, joint_run)
    )
    backbone = {name: value for name, value in first.items() if name.startswith("network.backbone.")}
    assert backbone
    assert all(torch.equal(second[name], value) for name, value in backbone.items())


def test_test_takes_the_runs_last_checkpoint_and_writes_results(joint_run: Path) -> None:
    main(["test", "--config", str(joint_run / "config.yaml"), *QUIET])
    results = json.loads((joint_run / "results.json").read_text())
    assert results["seed"] == 0
    assert results["data_split"]["sizes"]["test"] == 360
    assert (joint_run / "accuracy_cost.png").exists()


def test_validate_and_predict_take_a_run(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", str(joint_run), *QUIET])
    assert "jei_dnn on digits, val split" in capsys.readouterr().out
    main(["predict", str(joint_run), "--output", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    run = eenet.open_run(joint_run)
    inputs = torch.cat([inputs for inputs, _ in run.batches("test")])
    routed = run.network.route(inputs, next(iter(run.model.policies().values())))
    assert [row["exit"] for row in rows] == routed.exits.tolist()
    assert [int(row["label"]) for row in rows] == routed.logits.argmax(-1).tolist()
    assert [row["id"] for row in rows[:2]] == ["0", "1"]


def test_a_run_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["test", str(tmp_path)], ["fit", "--resume", str(tmp_path)]):
        assert f"run = '{tmp_path}': there is no" in mistake(capsys, *args)


def test_a_folder_that_holds_a_run_is_not_overwritten(backbone_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (backbone_run / "checkpoints" / "last.ckpt").read_bytes()
    printed = mistake(capsys, "fit", "--config", str(backbone_run / "config.yaml"))
    assert "trainer.default_root_dir" in printed
    assert "--ckpt_path last" in printed
    assert (backbone_run / "checkpoints" / "last.ckpt").read_bytes() == before


@EACH
def test_every_shipped_config_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = offline(path, tmp_path, monkeypatch)
    main(["fit", "--config", str(config), *QUIET, "--trainer.fast_dev_run=true"])


@DIGITS
def test_printed_configs_round_trip(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for number in range(2):
        with pytest.raises(SystemExit) as exit:
            main(["fit", "--config", str(path), "--print_config"])
        assert exit.value.code in (0, None)
        printed.append(capsys.readouterr().out)
        path = tmp_path / f"{number}.yaml"
        path.write_text(printed[-1])
    assert yaml.safe_load(printed[0]) == yaml.safe_load(printed[1])
    assert "max_epochs" in printed[0]


@pytest.mark.parametrize("path", METHODS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_key_of_a_config_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    assert sum("#" in line for line in lines) >= 8


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--model.init_args.network.init_args.exits=[7]", "network.exits = [7]"),
        ("--model.init_args.network.init_args.exits=[1,0]", "network.exits = [1, 0]"),
        ("--model.init_args.tradeoff=-1", "model.tradeoff = -1"),
        (f"--{BACKBONE}.init_args.image_size=9", "backbone.image_size = 9"),
        (f"--{BACKBONE}.init_args.image_size=12", "backbone.input_shape = (1, 12, 12)"),
        (f"--{BACKBONE}.init_args.in_channels=3", "digits gives (1, 8, 8)"),
        (f"--{BACKBONE}.init_args.num_classes=7", "backbone.num_classes = 7"),
        (f"--{BACKBONE}.init_args.name=vit_enormous", "backbone.name = 'vit_enormous'"),
        ("--data.init_args.validation_fraction=2", "data.validation_fraction = 2"),
        ("--data.init_args.batch_size=0", "data.batch_size = 0"),
        ("--data=datamodules.CIFAR10", "data.root"),
        (
            "--data=lightning.pytorch.demos.boring_classes.BoringDataModule",
            "BoringDataModule': must be a subclass of RunData; make it the `data` of a datamodules.OwnData, or write",
        ),
        ("--data.init_args.sampler=weighted", "sampler"),
        ("--ckpt_path=nowhere.ckpt", "ckpt_path = 'nowhere.ckpt'"),
        ("--model.init_args.backbone_checkpoint=nowhere", "model.backbone_checkpoint = 'nowhere'"),
        ("--trainer.max_epochs=-1", "trainer.max_epochs"),
    ],
)
def test_mistakes_are_one_clear_error(
    override: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path / "j.yaml", "JointExits", tmp_path / "run")
    if "CIFAR10" in override:
        extra = [f"--data.init_args.root={tmp_path}", f"--{BACKBONE}.init_args.image_size=32"]
        extra.append(f"--{BACKBONE}.init_args.in_channels=3")
        override_args = [override, *extra]
    else:
        override_args = [override]
    printed = mistake(capsys, "fit", "--config", str(config), *override_args)
    assert expected in printed
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_backbones_checkpoint_is_refused(
    backbone_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path / "j.yaml", "JointExits", tmp_path / "run", backbone_checkpoint=str(backbone_run))
    printed = mistake(capsys, "fit", "--config", str(config), f"--{BACKBONE}.init_args.overrides.depth=3")
    assert "holds another backbone: depth 4 instead of 3" in printed


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.ckpt").write_text("nonsense")
    config = tiny(tmp_path / "j.yaml", "JointExits", tmp_path / "run", backbone_checkpoint=str(tmp_path / "file.ckpt"))
    assert "is no checkpoint of eenet" in mistake(capsys, "fit", "--config", str(config))


def test_a_run_of_another_method_is_refused(
    backbone_run: Path, joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = backbone_run / "checkpoints" / "last.ckpt"
    printed = mistake(capsys, "test", "--config", str(joint_run / "config.yaml"), f"--ckpt_path={checkpoint}")
    assert "'backbone'" in printed
    assert "jei_dnn" in printed


def test_another_validation_split_is_refused(
    joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(joint_run, tmp_path / "run")
    args = ["test", "--config", str(joint_run / "config.yaml"), f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert "split" in mistake(capsys, *args, "--data.init_args.seed=5")


def test_a_run_on_another_data_set_is_refused(
    joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fashion(tmp_path, np.tile(np.arange(10), 20), np.tile(np.arange(10), 3))
    args = ["test", "--config", str(joint_run / "config.yaml"), "--data=datamodules.FashionMNIST"]
    printed = mistake(capsys, *args, f"--data.init_args.root={tmp_path}", "--data.init_args.image_size=8")
    assert "data = 'fashion_mnist': the checkpoint was trained on digits" in printed


@pytest.mark.parametrize(
    ("limit", "data", "expected"),
    [
        (16, "texts", "data.max_length = 32: the backbone takes 16 tokens at most"),
        (32, "digits", "backbone = 'Bert': digits holds images, which it does not read"),
    ],
)
def test_what_a_text_backbone_cannot_read_is_refused(
    limit: int, data: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    config = yaml.safe_load(tiny(tmp_path / "b.yaml", "BackboneTraining", tmp_path / "run").read_text())
    overrides = {**SMALL_BERT, "max_position_embeddings": limit}
    config["model"]["init_args"]["backbone"] = {
        "class_path": "eenet.backbones.Bert",
        "init_args": {"num_classes": 2 if data == "texts" else 10, "overrides": overrides},
    }
    if data == "texts":
        train = tmp_path / "train.csv"
        train.write_text("text,label\n" + "good,0\nbad,1\n" * 10)
        values = {"tokenizer": write_tokenizer(tmp_path / "t"), "train": str(train), "test": None, "max_length": 32}
        config["data"] = {"class_path": "datamodules.TextClassification", "init_args": values}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(config))
    assert expected in mistake(capsys, "fit", "--config", str(tmp_path / "b.yaml"))


def test_an_unreadable_image_in_a_worker_process_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_imagenet(tmp_path, ["n01440764", "n01443537"], train=20, val=2)
    image = tmp_path / "train" / "n01443537" / "n01443537_3.JPEG"
    image.write_bytes(image.read_bytes()[:500])
    config = tiny(tmp_path / "b.yaml", "BackboneTraining", tmp_path / "run")
    backbone = "--model.init_args.backbone.init_args"
    args = [f"{backbone}.num_classes=2", f"{backbone}.in_channels=3", "--data=datamodules.ImageNet"]
    args += ["--data.init_args.image_size=8", "--data.init_args.num_workers=1", f"--data.init_args.root={tmp_path}"]
    printed = mistake(capsys, "fit", "--config", str(config), *args)
    assert "data.root = " in printed
    assert "n01443537_3.JPEG': not a readable image" in printed


def test_testing_a_folder_without_a_run_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(tmp_path / "j.yaml", "JointExits", tmp_path / "run")
    assert "`eenet fit` makes it" in mistake(capsys, "test", "--config", str(config))


def test_wrong_keys_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(tmp_path / "j.yaml", "JointExits", tmp_path / "run", tradeof=1.0)
    assert "tradeof" in mistake(capsys, "fit", "--config", str(config))

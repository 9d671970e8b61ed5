"""Overlays: each does to a run what it says."""

from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eenet.cli.main import main
from eenet.parsing.shipped import CONFIGS
from tests.cli.test_cli import QUIET, tiny

OVERLAYS = sorted(path.stem for path in (CONFIGS / "overlays").glob("*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_sets_its_keys(overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", "digits/vit_jei_dnn", "--config", f"overlays/{overlay}", "--print_config"])
    assert exit.value.code in (0, None)
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    for key, value in yaml.safe_load((CONFIGS / "overlays" / f"{overlay}.yaml").read_text())["trainer"].items():
        found = trainer[key]
        if isinstance(value, dict):
            assert found["class_path"] == value["class_path"]
            assert found["init_args"].items() >= value["init_args"].items()
        else:
            assert found == value


def overfit(config: Path, folder: Path, *args: str) -> dict[str, float]:
    """The last validation accuracies of a run under the overlay, by the name of exit or operating point."""
    more = [
        f"--trainer.default_root_dir={folder}",
        "--trainer.enable_checkpointing=false",
        "--trainer.logger=true",
        *args,
    ]
    main(["fit", "--config", str(config), "--config", "overlays/overfit", *QUIET, *more])
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/accuracy/")]
    return {tag.split("/")[-1]: events.Scalars(tag)[-1].value for tag in tags}


@pytest.mark.slow
def test_overfit_reaches_every_label_of_the_batches_it_trains_on(tmp_path: Path) -> None:
    config = tiny(tmp_path / "b.yaml", "BackboneTraining", tmp_path / "run")
    assert overfit(config, tmp_path / "run")["full"] > 0.98


def test_overfit_reads_raw_batches_where_features_are_configured(tmp_path: Path) -> None:
    config = tiny(tmp_path / "j.yaml", "JointExits", tmp_path / "run", features="memory", warmup_epochs=1)
    more = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"]
    for accuracy in overfit(config, tmp_path / "run", *more).values():
        assert 64 * accuracy == pytest.approx(round(64 * accuracy), abs=1e-4)  # of two batches of 32


def test_profile_writes_where_the_time_goes(tmp_path: Path) -> None:
    config = tiny(tmp_path / "b.yaml", "BackboneTraining", tmp_path / "run")
    args = ["fit", "--config", str(config), "--config", "overlays/profile", *QUIET]
    main([*args, f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.limit_train_batches=2"])
    profile = (tmp_path / "run" / "fit-profile.txt").read_text()
    assert "optimizer_step" in profile
    assert "validation_step" in profile

"""Points that say what they were chosen on: how a training ends, what a trial leaves, what is refused."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from datamodules import Digits
from eenet.calibration import ChosenOn, policy_for_budget, weights_digest
from eenet.calibration.chosen import warn_guessing
from eenet.calibration.search import Scored
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.inference_modules import LinearHead
from eenet.policies import Threshold
from eenet.quantization import QuantizedNetwork
from eenet.runs import RunFolder
from lightning_modules import BackboneTraining, DecoupledExits, JointExits, QuEE
from lightning_modules.choosing import ChoosesPoints
from tests._dummies import make_network, make_vit

pytestmark = pytest.mark.forks

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "num_sanity_val_steps": 0,
}
SAMPLES = 144
"""Of the digits' validation split."""


def make_data() -> Digits:
    return Digits(batch_size=64, eval_batch_size=48)


def make_routine(**arguments: Any) -> DecoupledExits:
    torch.manual_seed(0)
    sgd: Callable[..., Any] = lambda params: torch.optim.SGD(params, lr=0.05)  # noqa: E731
    network = make_network(exits=[0, 1], gate=ConfidenceGate)
    return DecoupledExits(network, **{"budgets": [0.5, 0.75], "optimizer": sgd, **arguments})


def make_trainer(folder: Path, **arguments: Any) -> Trainer:
    return Trainer(**{**QUIET, "default_root_dir": folder, "max_epochs": 2, "limit_train_batches": 3, **arguments})


def fitted(folder: Path, **arguments: Any) -> DecoupledExits:
    routine = make_routine()
    make_trainer(folder, **arguments).fit(routine, datamodule=make_data())
    return routine


def expected_thresholds(routine: DecoupledExits) -> list[float]:
    """What the whole validation split asks for with the present weights."""
    data = make_data()
    data.prepare_data()
    network = routine.network.eval()
    with torch.no_grad():
        outputs = [(network(inputs), labels) for inputs, labels in data.val_dataloader()]
    logits, labels = torch.cat([o.logits for o, _ in outputs]), torch.cat([labels for _, labels in outputs])
    scores = torch.cat([o.scores for o, _ in outputs])
    predictions = logits.argmax(-1)
    scored = Scored(predictions, scores, predictions == labels[:, None], network.costs.fractions())
    shared = Threshold([0.0] * scores.shape[1])
    return [policy_for_budget(shared, scored, budget).thresholds[0].item() for budget in routine.budgets]  # type: ignore


def check_chosen(routine: DecoupledExits) -> None:
    assert routine.validated_on == ChosenOn(
        weights_digest(routine.network.state_dict()), make_data().fingerprint("val"), SAMPLES
    )
    assert routine.thresholds.tolist() == expected_thresholds(routine)


ENDS: dict[str, dict[str, Any]] = {
    "no validation": {"limit_val_batches": 0},
    "within an epoch": {"max_steps": 5},
    "seldom validated": {"check_val_every_n_epoch": 7},
    "one batch": {"limit_val_batches": 1},
    "in the middle of epochs": {"val_check_interval": 2},
}


@pytest.mark.parametrize("arguments", ENDS.values(), ids=ENDS)
def test_points_are_those_of_the_whole_split_on_the_final_weights(arguments: dict[str, Any], tmp_path: Path) -> None:
    routine = fitted(tmp_path, **arguments)
    check_chosen(routine)
    saved = torch.load(RunFolder(tmp_path).last, weights_only=True)
    assert saved["validated_on"] == routine.validated_on.to_dict()  # type: ignore[union-attr]
    assert torch.equal(saved["state_dict"]["thresholds"], routine.thresholds)


def test_a_checkpoint_brings_its_points_to_a_test(tmp_path: Path) -> None:
    routine = fitted(tmp_path, limit_val_batches=0)
    path = RunFolder(tmp_path).last
    again = make_routine()
    make_trainer(tmp_path).test(again, datamodule=make_data(), ckpt_path=path, verbose=False)
    assert again.thresholds.tolist() == routine.thresholds.tolist()
    rows = json.loads((tmp_path / "results.json").read_text())["operating_points"]
    assert [row["chosen"] for row in rows] == [True, True]
    assert rows[0]["chosen_on"] == routine.validated_on.to_dict()  # type: ignore[union-attr]
    assert rows[0]["exit_fractions"][-1] < 1


def count_validations(routine: DecoupledExits) -> list[Any]:
    seen: list[Any] = []
    choose = routine.choose_points
    routine.choose_points = lambda records: (seen.append(routine.trainer.state.fn), choose(records))[1]  # type: ignore
    return seen


def test_a_last_validation_that_was_whole_is_not_repeated(tmp_path: Path) -> None:
    routine = make_routine()
    seen = count_validations(routine)
    make_trainer(tmp_path).fit(routine, datamodule=make_data())
    assert seen == ["fit", "fit"]
    check_chosen(routine)


@pytest.mark.parametrize("trial", [{"fast_dev_run": 2}, {"overfit_batches": 2}], ids=str)
def test_a_trial_run_chooses_nothing(trial: dict[str, Any], tmp_path: Path) -> None:
    routine = fitted(tmp_path, **trial)
    assert routine.validated_on is None
    assert routine.thresholds.tolist() == [float("inf")] * 2
    rows = routine.results["operating_points"]
    assert [set(row) for row in rows] == [{"name", "chosen", "why"}] * 2
    assert f"trainer.{next(iter(trial))}" in rows[0]["why"]


def test_a_sanity_check_chooses_nothing_and_leaves_no_results(tmp_path: Path) -> None:
    routine = make_routine()
    trainer = make_trainer(tmp_path, num_sanity_val_steps=2, max_steps=0)
    trainer.fit(routine, datamodule=make_data())
    assert routine.thresholds.tolist() == [float("inf")] * 2
    assert not routine.results


def test_a_continued_run_ends_as_from_the_checkpoint_before_its_points_were_put_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for name in ("with", "without"):
        folder = tmp_path / name
        if name == "without":
            monkeypatch.setattr(ChoosesPoints, "amend", lambda *_: False)
        fitted(folder, limit_val_batches=1)
        checkpoint = RunFolder(folder).last
        saved = torch.load(checkpoint, weights_only=True)
        assert (saved["validated_on"] is None) == (name == "without")
        rest = make_routine()
        make_trainer(folder, max_epochs=4).fit(rest, datamodule=make_data(), ckpt_path=checkpoint)
        weights.append(rest.network.state_dict())
        assert rest.trainer.global_step == 12
    for name, values in weights[0].items():
        assert torch.equal(values, weights[1][name]), name


def test_only_checkpoints_of_the_final_weights_get_the_points(tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3, save_last=True)
    routine = make_routine()
    make_trainer(tmp_path, limit_val_batches=1, callbacks=[every]).fit(routine, datamodule=make_data())
    saved = {path.name: torch.load(path, weights_only=True)["validated_on"] for path in tmp_path.glob("*.ckpt")}
    assert saved.pop("step=3.ckpt") is None
    assert set(saved) == {"step=6.ckpt", "last.ckpt"}
    assert all(found == routine.validated_on.to_dict() for found in saved.values())  # type: ignore[union-attr]


def test_averaged_weights_have_points_of_their_own(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "best", monitor="val/accuracy")
    average = EMAWeightAveraging(decay=0.5)
    routine = fitted(tmp_path, max_epochs=1, callbacks=[average, best])
    check_chosen(routine)
    for path in (RunFolder(tmp_path).last, tmp_path / "best.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert saved["validated_on"] == routine.validated_on.to_dict()  # type: ignore[union-attr]
        assert torch.equal(saved["state_dict"]["thresholds"], routine.thresholds)


def test_a_checkpoint_of_other_thresholds_than_were_chosen_has_no_points(tmp_path: Path) -> None:
    routine = fitted(tmp_path, max_epochs=1)
    checkpoint = {"state_dict": {**routine.state_dict(), "thresholds": torch.tensor([0.5, float("inf")])}}
    ChoosesPoints.on_save_checkpoint(routine, checkpoint)
    assert checkpoint["validated_on"] is None


def test_a_search_for_the_batch_size_may_take_its_checkpoint_away(tmp_path: Path) -> None:
    data, routine = make_data(), make_routine()
    search = BatchSizeFinder(max_trials=2, steps_per_trial=1)
    make_trainer(tmp_path, max_epochs=1, callbacks=[search]).fit(routine, datamodule=data)
    assert data.batch_size == 4
    assert routine.trainer.global_step == 3
    check_chosen(routine)


def test_stopping_reads_the_parts_of_a_limited_training(tmp_path: Path) -> None:
    stop = EarlyStopping("val/accuracy", mode="max", patience=1, min_delta=1.0)
    routine = fitted(tmp_path, limit_val_batches=1, max_epochs=9, callbacks=[stop])
    assert routine.trainer.current_epoch == 2
    check_chosen(routine)


def test_features_in_memory_end_with_the_same_points(tmp_path: Path) -> None:
    routine = make_routine(features="memory")
    make_trainer(tmp_path, limit_val_batches=1).fit(routine, datamodule=make_data())
    assert routine.validated_on is not None
    assert (routine.validated_on.samples, routine.validated_on.split) == (SAMPLES, make_data().fingerprint("val"))
    assert routine.thresholds.tolist() == pytest.approx(expected_thresholds(routine), abs=1e-5)


def test_two_processes_end_with_one_whole_validation(tmp_path: Path) -> None:
    routine = make_routine()
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork", find_unused_parameters=True)
    trainer = make_trainer(tmp_path, limit_val_batches=1, strategy=strategy, devices=2)
    data = Digits(batch_size=64, eval_batch_size=48, validation_fraction=0.0995)
    trainer.fit(routine, datamodule=data)
    path = RunFolder(tmp_path).last
    saved = torch.load(path, weights_only=True)
    assert data.split_record()["sizes"]["val"] == 143  # one is judged twice, so that processes have as many
    assert saved["validated_on"]["samples"] == 143
    assert saved["state_dict"]["thresholds"].isfinite().all()
    routine.load_state_dict(saved["state_dict"])
    assert saved["validated_on"]["weights"] == weights_digest(routine.network.state_dict())


def test_without_validation_data_points_are_not_chosen(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    routine, data = make_routine(), make_data()
    data.prepare_data()
    make_trainer(tmp_path).fit(routine, DataLoader(data.dataset("train"), batch_size=64))
    assert routine.validated_on is None
    assert any("budget-0.5 is not chosen: no whole validation" in str(warning.message) for warning in recwarn)


def test_points_on_other_weights_or_another_split_are_marked_in_a_test_and_refused_for_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routine = fitted(tmp_path)
    routine.network.inference_modules[0].linear.bias.data += 1e-3
    trainer = make_trainer(tmp_path)
    trainer.test(routine, datamodule=make_data(), verbose=False)
    rows = json.loads((tmp_path / "results.json").read_text())["operating_points"]
    remedy = f"choose points with `eenet calibrate {tmp_path} --budget 0.5,0.75`"
    assert [row["why"] for row in rows] == [f"it was chosen on other weights; {remedy}"] * 2
    assert not any("accuracy" in row or row["chosen"] for row in rows)
    assert "test/accuracy" not in trainer.callback_metrics
    printed = capsys.readouterr().out
    assert "budget-0.5 (not chosen)" in printed
    assert f"not chosen: budget-0.5, budget-0.75: it was chosen on other weights; {remedy}\n" in printed
    with pytest.raises(UserError, match=r"budget-0\.5.*not chosen: it was chosen on other weights"):
        trainer.predict(routine, datamodule=make_data())
    routine.network.inference_modules[0].linear.bias.data -= 1e-3
    routine = fitted(tmp_path / "again")
    trainer.test(routine, datamodule=Digits(seed=1), verbose=False)
    assert "another validation split" in routine.results["operating_points"][0]["why"]


def test_a_part_of_the_split_judges_points_that_the_whole_has_chosen(tmp_path: Path) -> None:
    routine = fitted(tmp_path)
    before = routine.thresholds.tolist()
    make_trainer(tmp_path, limit_val_batches=1).validate(routine, datamodule=make_data(), verbose=False)
    assert routine.thresholds.tolist() == before
    assert [row["chosen"] for row in routine.results["operating_points"]] == [True, True]


def test_thresholds_are_those_of_their_budgets_whatever_is_asked_for_later(tmp_path: Path) -> None:
    routine = fitted(tmp_path)
    path = RunFolder(tmp_path).last
    other = make_routine(budgets=[0.9, 0.75, 0.6])
    make_trainer(tmp_path).test(other, datamodule=make_data(), ckpt_path=path, verbose=False)
    assert other.thresholds.tolist() == [float("inf"), routine.thresholds[1].item(), float("inf")]
    rows = {row["name"]: row["chosen"] for row in other.results["operating_points"]}
    assert rows == {"budget-0.9": False, "budget-0.75": True, "budget-0.6": False}
    assert "no whole validation has chosen it" in other.results["operating_points"][0]["why"]
    assert other.results["identity"]["fields"]["model.budgets"] == [0.9, 0.75, 0.6]
    more = make_routine(budgets=[0.9])
    make_trainer(tmp_path, max_epochs=3).fit(more, datamodule=make_data(), ckpt_path=path)
    check_chosen(more)
    assert [row["chosen"] for row in more.results["operating_points"]] == [True]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("gate", {"gate": partial(ConfidenceGate, measure="entropy")}),
        ("inference_modules", {"gate": ConfidenceGate, "inference_module": partial(LinearHead, normalize=False)}),
    ],
)
def test_weights_are_read_by_no_other_gate_or_head(field: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    fitted(tmp_path, max_epochs=1)
    routine = DecoupledExits(make_network(exits=[0, 1], **arguments), budgets=[0.5, 0.75])
    with pytest.raises(UserError, match=f"is the checkpoint's {field}, the configuration asks for"):
        make_trainer(tmp_path).test(routine, datamodule=make_data(), ckpt_path=RunFolder(tmp_path).last)


def test_results_say_what_was_trained_not_what_a_configuration_asks_for_since(tmp_path: Path) -> None:
    trained = JointExits(make_network(exits=[0, 1]), tradeoff=0.5, warmup_epochs=0)
    with pytest.warns(UserWarning, match="the frozen backbone finds .* as guessing does"):
        make_trainer(tmp_path, max_epochs=1).fit(trained, datamodule=make_data())
    edited = JointExits(make_network(exits=[0, 1]), tradeoff=2.0, warmup_epochs=0, clip=False)
    with pytest.warns(UserWarning, match=r"model\.tradeoff = 2\.0: the checkpoint was trained with 0\.5") as warned:
        make_trainer(tmp_path).test(edited, datamodule=make_data(), ckpt_path=RunFolder(tmp_path).last, verbose=False)
    assert sum("was trained with" in str(warning.message) for warning in warned) == 1
    identity = edited.results["identity"]
    assert identity["lambda"] == identity["fields"]["model.tradeoff"] == 0.5
    assert identity["fields"]["model.clip"] is False


@pytest.mark.parametrize(("accuracy", "warns"), [(0.18, True), (0.2, False)])
def test_guessing_is_a_share_within_two_standard_errors_of_chance(
    accuracy: float, warns: bool, recwarn: pytest.WarningsRecorder
) -> None:
    warn_guessing({"balanced_accuracy": accuracy, "bins": {"count": [20, 24]}}, num_classes=10)  # 0.1 + 2 * 0.0452
    assert len(recwarn) == warns


def test_validation_samples_that_trained_the_backbone_are_warned_of(tmp_path: Path) -> None:
    make_trainer(tmp_path / "b", max_steps=1).fit(BackboneTraining(make_vit()), datamodule=make_data())
    for seed, warns in ((0, False), (1, True)):
        routine, data = make_routine(backbone_checkpoint=str(tmp_path / "b")), Digits(batch_size=64, seed=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(tmp_path / str(seed), max_steps=1).fit(routine, datamodule=data)
        said = [str(one.message) for one in caught if "trained the backbone in" in str(one.message)]
        assert len(said) == warns
        if warns:
            train, val = (data_of.dataset(split).rows for data_of, split in ((make_data(), "train"), (data, "val")))
            assert f"{len({*train} & {*val})} of its validation samples" in said[0]


def test_two_budgets_of_one_name_are_refused() -> None:
    for make in (make_routine, lambda budgets: QuEE(QuantizedNetwork(make_vit(), [1], widths=[8]), budgets=budgets)):
        with pytest.raises(
            UserError, match=r"model\.budgets = \[0\.5, 0\.50000001\]: two of them are one point's name"
        ):
            make(budgets=[0.5, 0.50000001])


def test_gates_that_never_trained_are_said(tmp_path: Path) -> None:
    routine = JointExits(make_network(exits=[0, 1]), warmup_epochs=5)
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="learned is not chosen: its gates have never trained"):
        trainer.fit(routine, datamodule=make_data())
    trainer.test(routine, datamodule=make_data(), verbose=False)
    (row,) = routine.results["operating_points"]
    assert row["why"].startswith("its gates have never trained: the warm-up has not ended")
    assert row["why"].endswith(f"`eenet calibrate {tmp_path} --policy max_probability --budget 0.5`")
    trained = JointExits(make_network(exits=[0, 1]), warmup_epochs=1)
    make_trainer(tmp_path / "trained").fit(trained, datamodule=make_data())
    assert trained.results["operating_points"][0]["chosen"]


def test_a_network_without_choices_is_always_chosen(tmp_path: Path) -> None:
    routine = BackboneTraining(make_vit())
    trainer = make_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(routine, datamodule=make_data())
    assert routine.validated_on is None
    trainer.test(routine, datamodule=make_data(), verbose=False)
    assert routine.results["operating_points"][0]["chosen"]


def test_points_by_which_nobody_leaves_early_warn(tmp_path: Path) -> None:
    routine = make_routine(budgets=[1.0], optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    routine.choose_points = lambda records: routine.thresholds.fill_(float("inf"))  # type: ignore
    with pytest.warns(UserWarning, match="at budget-1 no validation sample leaves early"):
        make_trainer(tmp_path, max_epochs=1).fit(routine, datamodule=make_data())


def test_a_test_of_a_part_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    routine = fitted(tmp_path)
    said = []
    for limit in (2, 1.0):
        make_trainer(tmp_path, limit_test_batches=limit).test(routine, datamodule=make_data(), verbose=False)
        said.append(json.loads((tmp_path / "results.json").read_text())["part"])
        printed = "figures of a part" in capsys.readouterr().out
        assert printed == (limit == 2)
    assert said == ["the test saw 2 of 8 batches", None]


def test_the_remedy_names_the_checkpoint_unless_it_is_the_last(tmp_path: Path) -> None:
    own, routine = RunFolder(tmp_path), make_routine()
    own.checkpoints.mkdir()
    best = own.checkpoints / "epoch=1 best.ckpt"
    assert f"calibrate {tmp_path} --budget" in routine.remedy(tmp_path, own.last)
    assert f"calibrate {tmp_path} --ckpt_path '{best}' --budget" in routine.remedy(tmp_path, best)

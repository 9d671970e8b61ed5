"""Routines on the digits: phases, frozen parts, targets and results."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from datamodules import Digits
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.objectives import best_exits, gate_targets, positive_weights
from lightning_modules import BackboneTraining, DecoupledExits, ExitRoutine, JointExits
from tests._dummies import make_network, make_vit


def train(routine: ExitRoutine, folder: Path, epochs: int = 2, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    limits = {"limit_train_batches": 4, "limit_val_batches": 2, "limit_test_batches": 2}
    trainer = Trainer(default_root_dir=folder, max_epochs=epochs, **{**quiet, **limits, **arguments})
    trainer.fit(routine, datamodule=Digits(batch_size=16, eval_batch_size=64))
    return trainer


def make_joint(**arguments: Any) -> JointExits:
    return JointExits(make_network(), **{"warmup_epochs": 1, "phase_batches": 3, "tradeoff": 0.1, **arguments})


def values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(before: list[torch.Tensor], module: torch.nn.Module) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


class Watch(Callback):
    """Notes the phase of each batch and what it changed."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.changed: list[tuple[bool, bool]] = []

    def on_train_batch_start(self, trainer: Trainer, routine: Any, *_: Any) -> None:
        self.phases.append(routine.phase)
        self.before = values(routine.network.inference_modules), values(routine.network.gate)

    def on_train_batch_end(self, trainer: Trainer, routine: Any, *_: Any) -> None:
        modules, gate = self.before
        self.changed.append(
            (not same(modules, routine.network.inference_modules), not same(gate, routine.network.gate))
        )


def test_jei_dnn_alternates_phases_that_touch_only_their_own_parts(tmp_path: Path) -> None:
    routine, watch = make_joint(), Watch()
    backbone = values(routine.network.backbone)
    train(routine, tmp_path, epochs=3, callbacks=[watch])
    assert watch.phases == ["warmup"] * 4 + ["gates"] * 3 + ["inference_modules"] * 3 + ["gates"] * 2
    expected = {"warmup": (True, False), "gates": (False, True), "inference_modules": (True, False)}
    assert watch.changed == [expected[phase] for phase in watch.phases]
    assert same(backbone, routine.network.backbone)
    assert not routine.network.backbone.training


def test_jei_dnn_trains_its_backbones_statistics_never(tmp_path: Path) -> None:
    from tests._dummies import make_resnet

    routine = JointExits(EarlyExitNetwork(make_resnet()), warmup_epochs=1)
    buffers = [buffer.clone() for buffer in routine.network.backbone.buffers()]
    train(routine, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(buffers, routine.network.backbone.buffers(), strict=True))


def test_positive_weights_come_from_the_whole_validation_split(tmp_path: Path) -> None:
    routine = make_joint(tradeoff=0.05)
    train(routine, tmp_path, limit_val_batches=1.0)
    data = Digits(batch_size=16, eval_batch_size=64)
    counts, total = torch.zeros(routine.num_gates), 0
    for inputs, labels in data.val_dataloader():
        with torch.no_grad():
            outputs = routine.eval()(inputs)
        best = best_exits(outputs.logits, labels, routine.network.costs.normalised().float(), 0.05)
        counts += gate_targets(best, routine.num_gates).sum(0)
        total += len(labels)
    torch.testing.assert_close(routine.positive_weight, positive_weights(counts, total))


def test_warm_up_ends_when_every_module_has_stopped(tmp_path: Path) -> None:
    still = JointExits(
        make_network(), warmup_epochs=50, warmup_patience=1, optimizer=lambda p: torch.optim.SGD(p, lr=1e-9)
    )
    train(still, tmp_path, epochs=3)
    assert not still.warming_up
    assert still.joint_batches == 4


def test_the_learning_rate_ends_at_its_final_value(tmp_path: Path) -> None:
    routine = make_joint(final_learning_rate=3e-4)
    trainer = train(routine, tmp_path)
    assert [group["lr"] for opt in trainer.optimizers for group in opt.param_groups] == pytest.approx([3e-4] * 2)


def test_decoupled_thresholds_keep_their_budgets_on_validation(tmp_path: Path) -> None:
    routine = DecoupledExits(make_network(gate=ConfidenceGate), budgets=[0.4, 0.7])
    train(routine, tmp_path, limit_val_batches=1.0)
    points = {row["name"]: row for row in routine.results["operating_points"]}
    assert list(points) == ["budget-0.4", "budget-0.7"]
    assert all(points[f"budget-{budget}"]["macs_fraction"] <= budget for budget in (0.4, 0.7))
    assert points["budget-0.4"]["accuracy"] <= points["budget-0.7"]["accuracy"]
    assert routine.thresholds[0] <= routine.thresholds[1] < float("inf")


def test_backbone_training_reduces_the_loss_and_changes_every_part(tmp_path: Path) -> None:
    seed_everything(0)
    routine = BackboneTraining(make_vit(), optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3))
    before = values(routine.network.backbone)
    train(routine, tmp_path, epochs=2, limit_train_batches=60)
    assert routine.results["exits"][0]["accuracy"] > 0.4
    assert not any(torch.equal(a, b) for a, b in zip(before, routine.network.backbone.parameters(), strict=True))


def test_test_writes_results_that_agree_with_each_other(tmp_path: Path) -> None:
    routine = make_joint()
    trainer = train(routine, tmp_path)
    trainer.test(routine, datamodule=Digits(batch_size=16, eval_batch_size=64), verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    fields = {"schema", "method", "data", "backbone", "seed", "split", "operating_points", "exits", "versions"}
    assert fields <= set(results)
    assert (results["method"], results["data"], results["split"]) == ("jei_dnn", "digits", "test")
    assert {"torch", "eenet"} == set(results["versions"])
    costs = routine.network.costs
    row = results["operating_points"][0]
    shares = row["exit_fractions"]
    assert sum(shares) == pytest.approx(1)
    assert row["macs"] == pytest.approx(sum(p * c for p, c in zip(shares, costs.cumulative, strict=True)))
    assert row["macs_fraction"] == pytest.approx(row["macs"] / costs.full)
    assert row["stages_mean"] == pytest.approx(sum(p * (i + 1) for i, p in enumerate(shares)))
    assert [exit["macs"] for exit in results["exits"]] == costs.static
    for name in ("accuracy_cost.png", "exit_histogram.png", "reliability.png"):
        assert (tmp_path / name).is_file()
    assert not list(tmp_path.glob(".*"))


def test_predict_gives_what_test_judges(tmp_path: Path) -> None:
    routine = make_joint()
    trainer = train(routine, tmp_path)
    data = Digits(eval_batch_size=64)
    batches = trainer.predict(routine, datamodule=data)
    trainer.test(routine, datamodule=data, verbose=False)
    assert batches is not None
    labels = torch.cat([batch["labels"] for batch in batches])[:128]  # type: ignore[index]
    truth = torch.cat([labels for _, labels in data.test_dataloader()])[:128]
    accuracy = (labels == truth).double().mean().item()
    assert routine.results["operating_points"][0]["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_joint(tradeoff=-0.1), r"model\.tradeoff = -0\.1"),
        (lambda: make_joint(tradeoff=float("nan")), r"model\.tradeoff = nan"),
        (lambda: make_joint(gate_objective="best"), r"model\.gate_objective = 'best'"),
        (lambda: make_joint(phase_batches=0), r"model\.phase_batches = 0"),
        (lambda: JointExits(make_network(exits=[])), "at least one early exit"),
        (lambda: JointExits(make_network(gate=ConfidenceGate)), "nothing to learn"),
        (lambda: DecoupledExits(make_network()), "need eenet.gates.ConfidenceGate"),
        (lambda: DecoupledExits(make_network(gate=ConfidenceGate), budgets=[1.5]), r"model\.budgets = 1\.5"),
        (lambda: BackboneTraining(make_vit(), warmup=1.0), r"model\.warmup = 1\.0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_budget_below_the_first_exit_is_said_and_keeps_nothing_from_training(tmp_path: Path) -> None:
    routine = DecoupledExits(make_network(gate=ConfidenceGate), budgets=[0.01, 0.7])
    with pytest.warns(UserWarning, match=r"budget-0\.01 cannot be met: the first exit alone costs"):
        train(routine, tmp_path, limit_val_batches=1.0)
    assert list(routine.unmet) == ["budget-0.01"]
    assert routine.thresholds[0] == float("inf") > routine.thresholds[1]


def test_a_nan_loss_stops_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, routine: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 1 and batch_idx == 2:
                routine.network.inference_modules[0].linear.bias.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"loss = nan: in phase `warmup`, batch 2"):
        train(make_joint(warmup_epochs=5), tmp_path, callbacks=[Poison()])
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_losses_are_logged_at_the_interval_whatever_the_length_of_an_epoch(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    train(BackboneTraining(make_vit()), tmp_path, 3, logger=logger, log_every_n_steps=3, limit_train_batches=4)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss/backbone"]]
    assert steps == [2, 5, 8, 11]

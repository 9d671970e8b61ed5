"""What routines ask of their data: batches they refuse before a step, and the classes' weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from datamodules import Digits
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.objectives import balanced_weights, cross_entropies
from eenet.quantization import QuantizedNetwork
from lightning_modules import BackboneTraining, DecoupledExits, JointExits, QuEE
from lightning_modules.batches import check_batch, check_inputs
from lightning_modules.routine import ExitRoutine
from tests._dummies import make_network, make_resnet, make_vit

INPUTS = torch.randn(33, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(33) % 10


def make_trainer(folder: Path, **arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual = {"max_epochs": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, **usual, **arguments})


def loader(inputs: Any = INPUTS[:32], labels: Any = LABELS[:32], size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(inputs, labels), batch_size=size)


class Dicts(Dataset):
    """As Hugging Face's data sets."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, item: int) -> dict[str, Any]:
        return {"pixel_values": INPUTS[item], "labels": LABELS[item]}


class Stream(IterableDataset):
    """Samples of which nobody knows how many there are."""

    def __iter__(self) -> Any:
        return iter(zip(INPUTS, LABELS, strict=True))


class Plain(LightningDataModule):
    """A data module of Lightning's own kind."""

    def train_dataloader(self) -> DataLoader:
        return loader()

    def val_dataloader(self) -> DataLoader:
        return loader()


class Untouched(BackboneTraining):
    """Fails the test if a step is made of a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("a step was made")

    validation_step = test_step = predict_step = training_step  # type: ignore[assignment]


WRONG = [
    (DataLoader(Dicts(), 8), r"'dict of pixel_values, labels': a batch must be a pair \(inputs, labels\)"),
    (loader(labels=torch.eye(10)[LABELS[:32]]), r"'float32 \(8, 10\)': .* of one-hot rows, labels\.argmax\(1\)"),
    (loader(labels=LABELS[:32].float()), r"'float32 \(8,\)': .*labels\.long\(\)"),
    (loader(labels=LABELS[:32].int()), r"'int32 \(8,\)': .* from 0 to 9, int64"),
    (loader(labels=LABELS[:32, None]), r"'int64 \(8, 1\)': .*labels\.squeeze\(1\)"),
    (loader(labels=LABELS[:32] + 3), r"data = 10: a label is not one of the 10 classes"),
    (loader(labels=LABELS[:32] - 1), r"data = -1: a label is not one of the 10 classes"),
    (loader(INPUTS[:32].expand(-1, 3, -1, -1)), r"'float32 \(8, 3, 8, 8\)': .* must be \(batch, 1, 8, 8\)"),
    (loader((INPUTS[:32] * 16).byte()), r"'uint8 \(8, 1, 8, 8\)': .* must be float32"),
    (loader(INPUTS[:32].double()), r"'float64 \(8, 1, 8, 8\)': .* must be float32"),
    (loader(INPUTS[:32].half()), r"'float16 \(8, 1, 8, 8\)': .* must be float32"),
    (
        DataLoader([({"pixel_values": INPUTS[0]}, 1)] * 8, 8),  # type: ignore[arg-type]
        r"'dict of pixel_values': .* one tensor \(batch, 1, 8, 8\), not a mapping",
    ),
    (DataLoader(INPUTS[:32], 8), r"'float32 \(8, 1, 8, 8\)': a batch must be a pair"),
    (DataLoader(TensorDataset(INPUTS[:32]), 8), r"'list of 1': a batch must be a pair"),
    (DataLoader([("a", 1)] * 8, 8), r"'tuple of 8': the inputs of a batch hold no tensor"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("data", "message"), WRONG, ids=range(len(WRONG)))
def test_batches_that_do_not_fit_are_refused_before_a_step(data: DataLoader, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path).fit(Untouched(make_vit()), data)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_every_stage_checks_its_batches(stage: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch must be a pair"):
        getattr(make_trainer(tmp_path), stage)(Untouched(make_vit()), DataLoader(INPUTS[:32], 8))


def test_a_wrong_label_in_a_later_batch_is_refused_too(tmp_path: Path) -> None:
    labels = LABELS[:32].clone()
    labels[20] = 77
    with pytest.raises(UserError, match="data = 77"):
        make_trainer(tmp_path).fit(BackboneTraining(make_vit()), loader(labels=labels))


def test_prediction_asks_for_no_labels() -> None:
    backbone = make_vit()
    for batch in ([INPUTS], (INPUTS, ["name"] * 33), [INPUTS, LABELS]):
        assert check_inputs(batch, backbone) == 33
    with pytest.raises(UserError, match="must be 33 class numbers"):
        check_batch((INPUTS, LABELS[:32]), backbone)


def test_loaders_and_plain_data_modules_train_and_test_from_python(tmp_path: Path) -> None:
    routine = DecoupledExits(make_network(gate=ConfidenceGate), budgets=[0.7])
    make_trainer(tmp_path).fit(routine, datamodule=Plain())
    assert routine.results["data"] == "Plain"
    trainer = make_trainer(tmp_path)
    trainer.fit(routine, loader(), loader())
    trainer.test(routine, loader(), verbose=False)
    assert routine.results["data"] == "TensorDataset"
    predicted = trainer.predict(routine, DataLoader(TensorDataset(INPUTS), 8))
    assert sum(len(batch["labels"]) for batch in predicted or []) == 33  # type: ignore[call-overload]


def test_a_loaders_last_batch_of_one_is_refused_where_it_is_normalised_over(tmp_path: Path) -> None:
    odd = loader(INPUTS, LABELS)
    with pytest.raises(UserError, match="takes drop_last=True"):
        make_trainer(tmp_path).fit(Untouched(make_resnet()), odd)
    make_trainer(tmp_path).fit(BackboneTraining(make_vit()), odd)
    make_trainer(tmp_path, limit_train_batches=1).fit(BackboneTraining(make_resnet()), odd)
    frozen = DecoupledExits(EarlyExitNetwork(make_resnet(), gate=ConfidenceGate), budgets=[1.0])
    make_trainer(tmp_path).fit(frozen, odd)
    make_trainer(tmp_path).fit(frozen, DataLoader(Stream(), 8))


def lopsided(kind: str, **arguments: Any) -> ExitRoutine:
    if kind == "backbone":
        return BackboneTraining(make_vit(), label_smoothing=0.1, **arguments)
    if kind == "decoupled":
        return DecoupledExits(make_network(gate=ConfidenceGate), budgets=[0.7], **arguments)
    if kind == "joint":
        return JointExits(make_network(), warmup_epochs=1, **arguments)
    return QuEE(QuantizedNetwork(make_vit(), exits=[1], widths=[8, 4]), budgets=[0.5], **arguments)


def by_hand(routine: Any, kind: str, inputs: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The loss of a batch from torch's own weighted cross-entropy, exit by exit."""
    if kind == "backbone":
        return F.cross_entropy(routine.network.backbone(inputs), labels, weight, label_smoothing=0.1)
    logits = routine.network.exit_logits(routine.network.extract(inputs))
    losses = torch.stack([F.cross_entropy(logits[:, exit], labels, weight) for exit in range(logits.shape[1])])
    if kind == "quee":
        return losses[: routine.network.tree.num_early] @ routine.weights
    weights = {"decoupled": torch.ones(3), "joint": torch.tensor([4.0, 3.0, 2.0])}[kind]
    return losses[:-1] @ weights


@pytest.mark.parametrize("kind", ["backbone", "decoupled", "joint", pytest.param("quee", marks=pytest.mark.slow)])
def test_every_routine_weighs_classes_as_torchs_cross_entropy(kind: str, tmp_path: Path) -> None:
    class Once(lopsided(kind).__class__):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if kind == "joint":
                found = self.phase_loss("warmup", self.extract(batch[0]), batch[1])
            else:
                found = super().training_step(batch, batch_idx)
            expected = by_hand(self, kind, *batch, weight=self.class_weight)
            torch.testing.assert_close(found, expected)
            self.seen = True

    weights = [1.0, 20.0, *[0.5] * 8]
    routine = lopsided(kind, class_weights=weights)
    routine.__class__ = Once
    make_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(routine, datamodule=Digits(batch_size=16))
    assert routine.seen
    assert routine.class_weight.tolist() == pytest.approx(weights)  # type: ignore[union-attr]


def test_weighted_samples_keep_the_exits_probabilities_and_the_gates_loss(tmp_path: Path) -> None:
    routine = lopsided("joint")
    assert isinstance(routine, JointExits)
    extracted, labels = routine.extract(INPUTS), LABELS
    plain = {phase: routine.phase_loss(phase, extracted, labels) for phase in ("gates", "inference_modules")}  # type: ignore[arg-type]
    routine.class_weight = torch.ones(10)
    torch.testing.assert_close(routine.phase_loss("inference_modules", extracted, labels), plain["inference_modules"])
    routine.class_weight = torch.tensor([1.0, 20.0, *[0.5] * 8])
    assert routine.phase_loss("gates", extracted, labels) == plain["gates"]
    routine.rescale = False
    logits = routine.network.exit_logits(extracted)[:, :-1]
    from eenet.policies import exit_distribution

    each = (exit_distribution(routine.network.gate(logits))[:, :-1] * cross_entropies(logits, labels)).sum(1)
    weights = routine.class_weight[labels]
    expected = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(routine.phase_loss("inference_modules", extracted, labels), expected)


def test_balanced_weights_are_scikit_learns_with_features_as_without(tmp_path: Path) -> None:
    labels = Digits().dataset("train").labels
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    torch.testing.assert_close(balanced_weights(torch.from_numpy(labels), 10).double(), torch.from_numpy(expected))
    for stored in (False, True):
        routine = lopsided("decoupled", class_weights="balanced", features="memory" if stored else "off")
        trainer = make_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
        trainer.fit(routine, datamodule=Digits(batch_size=64))
        assert routine.class_weight.tolist() == pytest.approx(expected.tolist())  # type: ignore[union-attr]


def test_weights_and_a_balanced_order_together_are_warned_of(tmp_path: Path) -> None:
    routine = lopsided("backbone", class_weights="balanced")
    with pytest.warns(UserWarning, match=r"data\.sampler balances already"):
        make_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(
            routine, datamodule=Digits(sampler="balanced")
        )


def test_balanced_weights_need_labels_to_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.class_weights = 'balanced': .*no training labels to count"):
        make_trainer(tmp_path).fit(lopsided("backbone", class_weights="balanced"), loader())


@pytest.mark.parametrize(
    "weights", [np.arange(1, 11), torch.arange(1, 11), tuple(range(1, 11))], ids=["numpy", "torch", "tuple"]
)
def test_class_weights_of_any_numbers_train(weights: Any, tmp_path: Path) -> None:
    routine = lopsided("backbone", class_weights=weights)
    make_trainer(tmp_path).fit(routine, loader())
    assert routine.class_weight.tolist() == list(range(1, 11))


@pytest.mark.parametrize("limit", ["limit_train_batches", "max_steps"])
@pytest.mark.parametrize("kind", ["backbone", "joint"])
def test_a_training_of_nothing_is_said(kind: str, limit: str, tmp_path: Path) -> None:
    routine = lopsided(kind)
    before = {name: value.clone() for name, value in routine.network.named_parameters()}
    with pytest.warns(UserWarning, match=f"trainer.{limit} = 0: nothing is trained"):
        make_trainer(tmp_path, **{limit: 0}).fit(routine, datamodule=Plain())
    assert all(torch.equal(value, before[name]) for name, value in routine.network.named_parameters())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("heavy", "must be none, balanced, or a list"),
        (1.0, "= 1.0: must be none, balanced, or a list"),
        ([[1.0]] * 10, "must be none, balanced, or a list"),
        ([1.0] * 9, "has 9 weights and the backbone 10 classes"),
        ([1.0] * 9 + [0.0], r"= 0\.0: each weight must be a finite number above 0"),
        ([1.0] * 9 + [float("nan")], "= nan: each weight"),
        ([1.0] * 9 + [float("inf")], "= inf: each weight"),
    ],
)
@pytest.mark.parametrize("kind", ["backbone", "decoupled", "joint", "quee"])
def test_class_weights_that_cannot_be_used_are_refused(kind: str, weights: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"model\.class_weights.*" + message):
        lopsided(kind, class_weights=weights)

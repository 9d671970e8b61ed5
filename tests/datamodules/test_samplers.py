"""The order of training samples and how it is cut into batches, for every kind of training loader."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import TensorDataset

from datamodules import Digits
from datamodules.base import Samples
from datamodules.continuations import TokenTable
from datamodules.features import FeatureLoaders, load_whole
from datamodules.samplers import Batches, EpochSampler, training_batches
from eenet.errors import UserError
from eenet.features import FeatureOptions
from lightning_modules import BackboneTraining
from tests._dummies import make_network, make_resnet

JOINED = "join the batch before it"


def labels_of(loader):
    return [labels for _, labels in loader]


class Lopsided(Digits):
    """Digits of which `ones` are class 1 and the others class 0."""

    num_classes = 2
    ones = 18

    def read(self):
        samples, _ = super().read()
        labels = np.zeros(len(samples.labels), np.int64)
        labels[np.flatnonzero(samples.labels == 1)[: self.ones]] = 1
        return Samples(samples.inputs, labels, samples.source), None


class Lonely(Lopsided):
    ones = 1


@pytest.mark.parametrize(("samples", "size"), [(1293, 34), (9, 4), (8, 4), (10, 4), (3, 2), (1, 4), (3, 1), (5, 4)])
def test_batches_are_torchs_but_for_a_last_one_of_one(samples: int, size: int) -> None:
    batches = Batches(range(samples), size)
    expected = [chunk.tolist() for chunk in torch.arange(samples).split(size)]
    if size > 1 and len(expected) > 1 and len(expected[-1]) == 1:
        last = expected.pop()
        expected[-1] += last
    assert list(batches) == list(batches) == expected
    assert len(batches) == len(expected)


def test_the_last_digit_joins_the_batch_before_it_and_this_is_said() -> None:
    data = Digits(batch_size=34)  # 1,293 = 38 * 34 + 1
    with pytest.warns(UserWarning, match=JOINED):
        loader = data.train_dataloader()
    sizes = [len(labels) for labels in labels_of(loader)]
    assert sizes == [34] * 37 + [35]
    assert len(loader) == 38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Digits(batch_size=32).train_dataloader()) == 41


def test_features_come_in_the_same_batches_as_raw_inputs() -> None:
    stored = FeatureLoaders(Digits(batch_size=34, eval_batch_size=143), make_network(), FeatureOptions())
    loaders = stored.data.train_dataloader(), stored.train_dataloader()
    for raw, kept in zip(*map(labels_of, loaders), strict=True):
        assert torch.equal(raw, kept)
    assert [len(labels) for labels in labels_of(stored.val_dataloader())] == [143, 1]


def test_tokens_are_cut_by_the_same_rule() -> None:
    table = TokenTable(torch.zeros(9, 2, 3), torch.zeros(9), torch.arange(9), torch.zeros(9))
    batches = training_batches(EpochSampler(table, (1, 0), seed=0), 4)
    sizes = [len(labels) for labels in labels_of(load_whole(table, batch_sampler=batches))]
    assert sizes == [4, 5]


def test_the_shares_of_processes_are_cut_by_the_same_rule() -> None:
    seen = []
    for rank in (0, 1):
        data = Digits(batch_size=38)  # 1293 = 17 * 76 + 1 for two processes
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, overfit_batches=0)
        loader = data.train_dataloader()
        assert [len(labels) for labels in labels_of(loader)] == [38] * 16 + [39 - rank]
        seen += [row for batch in loader.batch_sampler for row in batch]
    assert sorted(seen) == list(range(1293))


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}, {"overfit_batches": 1.0}])
def test_a_batch_normalised_backbone_trains_through_a_last_batch_of_one(arguments, tmp_path) -> None:
    class Few(Digits):
        def keep(self, labels):
            return super().keep(labels)[:76]  # 65 of them train

    routine = BackboneTraining(make_resnet())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=False, **quiet, **arguments)
    data = Few(batch_size=16, validation_fraction=0.14)
    trainer.fit(routine, datamodule=data)
    assert len(data.dataset("train")) % 16 == 1
    assert trainer.num_training_batches == len(data.dataset("train")) // 16


@pytest.mark.parametrize("world", [1, 2])
def test_a_balanced_epoch_draws_every_class_as_often(world: int) -> None:
    drawn = []
    for rank in range(world):
        data = Lopsided(sampler="balanced")
        data.trainer = SimpleNamespace(world_size=world, global_rank=rank, overfit_batches=0)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(3)
        drawn.append(torch.cat(labels_of(loader)))
    together = torch.cat(drawn)
    share = together.double().mean().item()
    assert data.dataset("train").labels.mean() < 0.02
    assert abs(share - 0.5) < 4 * 0.5 / len(together) ** 0.5
    assert world == 1 or not torch.equal(*drawn)


def test_a_balanced_order_is_a_function_of_seed_and_epoch_and_reaches_features() -> None:
    def order(epoch: int, **options) -> list[int]:
        sampler = Lopsided(sampler="balanced", **options).train_dataloader().sampler
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(2) == order(2)
    assert order(2) != order(3)
    assert order(2) != order(2, seed=1)
    data = Digits(sampler="balanced", augment=True)
    loader = FeatureLoaders(data, make_network(), FeatureOptions()).train_dataloader()
    raw = data.train_dataloader()
    for found in (loader, raw):
        found.sampler.set_epoch(2)
    assert torch.equal(torch.cat(labels_of(loader)), torch.cat(labels_of(raw)))
    assert raw.dataset.epoch == 2


def test_a_class_of_one_sample_is_refused_or_stays_in_training() -> None:
    with pytest.raises(UserError, match=r"class 1 has 1; `data\.rare: train` keeps"):
        Lonely().split_record()
    data = Lonely(rare="train")
    with pytest.warns(UserWarning, match=r"only sample of class 1 stays in training; validation judges 1 of 2 classes"):
        record = data.split_record()
    assert record["rare"] == [1]
    assert [data.dataset(split).labels.sum() for split in ("train", "val", "test")] == [1, 0, 0]
    assert sum(record["sizes"].values()) == 1797


def test_checkpoints_made_before_the_option_still_load() -> None:
    record = Digits().split_record()
    assert "rare" not in record
    Digits(rare="train").load_state_dict(record)
    lonely = Lonely(rare="train").split_record()
    with pytest.raises(UserError, match=r"data \(rare\)"):
        Lonely(rare="train").load_state_dict({key: value for key, value in lonely.items() if key != "rare"})


@pytest.mark.parametrize(("field", "value"), [("sampler", "weighted"), ("rare", "drop")])
def test_unknown_words_are_refused(field: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{field} = '{value}'"):
        Digits(**{field: value})


def test_a_loader_of_batches_tells_lightning_of_its_sampler() -> None:
    dataset = TensorDataset(torch.arange(9))
    sampler = EpochSampler(dataset, (1, 0), seed=0)
    assert load_whole(dataset, batch_sampler=Batches(sampler, 4)).sampler is sampler

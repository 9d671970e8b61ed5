import ast
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import jsonargparse
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2

import datamodules
from datamodules import Digits, Split, SplitData
from datamodules.image import Normalize
from eenet.errors import UserError

SPLITS = get_args(Split)


class Probe(pl.LightningModule):
    """Remembers what it is fed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.epochs: list[list[torch.Tensor]] = []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, _):
        self.epochs[-1].append(batch[0])
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def test_step(self, batch):
        pass

    def predict_step(self, batch, _):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **options):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **options,
    )  # fmt: skip


def order(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader.sampler)


def test_digits_are_scikit_learns_pixels_and_the_splits_share_none():
    data, digits = Digits(), load_digits()
    assert (data.name, data.num_classes, data.input_shape) == ("digits", 10, (1, 8, 8))
    rows = {split: data.dataset(split).rows for split in SPLITS}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(1797))
    assert {split: len(kept) for split, kept in rows.items()} == {"train": 1293, "val": 144, "test": 360}
    pixels = torch.from_numpy(digits.images).float() / 16
    for split in SPLITS:
        inputs = torch.cat([batch[0] for batch in data.loader(split)])
        labels = torch.cat([batch[1] for batch in data.loader(split)])
        expected = (pixels[rows[split]][:, None] - data.mean[0]) / data.std[0]
        torch.testing.assert_close(inputs, expected)
        assert labels.dtype == torch.int64
        assert labels.tolist() == digits.target[rows[split]].tolist()
        shares = np.bincount(labels) / len(labels) - np.bincount(digits.target) / 1797
        assert np.abs(shares).max() < 0.006
    assert data.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-4)
    assert data.std[0] == pytest.approx(pixels.std().item(), abs=1e-4)


def test_the_test_split_stays_when_the_seed_changes():
    first, second = Digits(seed=0), Digits(seed=1)
    assert first.dataset("test").rows.tolist() == second.dataset("test").rows.tolist()
    assert first.dataset("val").rows.tolist() != second.dataset("val").rows.tolist()
    assert first.fingerprint("test") == second.fingerprint("test")
    assert first.fingerprint("val") != second.fingerprint("val")


def test_fingerprints_know_rows_transform_and_pixels():
    data = Digits()
    assert data.fingerprint("train") == Digits().fingerprint("train")
    assert data.fingerprint("train") != data.fingerprint("train", augmented=True)
    assert data.fingerprint("val") == data.fingerprint("val", augmented=True)
    assert data.fingerprint("train") != Digits(image_size=16).fingerprint("train")
    changed = Digits()
    changed.dataset("train").inputs.pixels[data.dataset("train").rows[5], 0, 3, 3] += 1
    assert data.fingerprint("train") != changed.fingerprint("train")
    assert data.fingerprint("val") == changed.fingerprint("val")


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    assert order(Digits(), 3) == order(Digits(), 3)
    assert order(Digits(), 3) != order(Digits(), 4)
    assert order(Digits(), 3) != order(Digits(seed=7), 3)
    assert sorted(order(Digits(), 3)) == list(range(1293))


def test_ranks_share_the_training_samples():
    orders = []
    for rank in (0, 1):
        data = Digits()
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        orders.append(order(data, 1))
    assert (len(orders[0]), len(orders[1])) == (647, 646)
    assert sorted(orders[0] + orders[1]) == list(range(1293))


def test_augmentation_is_a_function_of_seed_epoch_and_sample():
    def batches(epoch=2, **options):
        loader = Digits(augment=True, validation_fraction=0.8, **options).train_dataloader()
        if epoch is not None:
            loader.sampler.set_epoch(epoch)
        return torch.cat([inputs for inputs, _ in loader])

    def views(epoch, seed=0):
        dataset = Digits(augment=True, validation_fraction=0.8, seed=seed).train_dataset()
        dataset.epoch = epoch
        return {int(dataset.rows[i]): dataset[i][0] for i in range(40)}

    def differ(first, second):
        return any(not torch.equal(first[row], second[row]) for row in set(first) & set(second))

    assert torch.equal(batches(), batches(num_workers=2))
    assert torch.equal(batches(epoch=0), batches(epoch=None))
    state = torch.get_rng_state()
    assert not differ(views(2), views(2))
    assert torch.equal(state, torch.get_rng_state())
    assert differ(views(2), views(3))
    assert differ(views(2), views(2, seed=1))
    assert differ(views(None), views(None))
    copies = Digits(augment=True, validation_fraction=0.8).train_dataset()
    copies.inputs.pixels[:] = copies.inputs.pixels[0].clone()
    copies.epoch = 0
    assert not torch.equal(torch.stack([copies[i][0] for i in range(10)]), copies[0][0].expand(10, 1, 8, 8))


@pytest.mark.parametrize("options", [{}, {"image_size": 12}, {"image_size": 32, "channels": 3}])
def test_images_in_memory_are_transformed_together_as_one_by_one(options):
    dataset = Digits(**options).dataset("val")
    items = [5, 3, 140, 3]
    for (image, label), item in zip(dataset.__getitems__(items), items, strict=True):
        assert torch.equal(image, dataset[item][0])
        assert label == dataset[item][1]
        assert type(label) is int


def test_normalising_is_torchvisions_and_fingerprints_know_it_by_the_same_words():
    mean, std = [125.3, 122.9, 113.86], [62.99, 62.0, 66.7]
    own, steps = Normalize(mean, std), v2.Compose([v2.ToDtype(torch.float32), v2.Normalize(mean, std)])
    assert repr(own) == repr(steps)
    for pixels in (
        torch.randint(256, (3, 8, 8), dtype=torch.uint8),
        torch.randint(256, (9, 3, 5, 5), dtype=torch.uint8),
    ):
        assert torch.equal(own(pixels), steps(pixels))


def test_a_digit_is_shifted_by_at_most_one_pixel():
    data = Digits()
    plain, shifted = (data.dataset("train", augmented) for augmented in (False, True))
    background = (0 - data.mean[0]) / data.std[0]
    for i in range(30):
        framed = nn.functional.pad(plain[i][0], (1, 1, 1, 1), value=background)
        windows = [framed[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        image = shifted[i][0]
        assert any(torch.allclose(image, window) for window in windows)


def test_resizing_is_done_in_float_and_grey_is_replicated():
    data = Digits(image_size=32, channels=3)
    inputs, _ = data.dataset("val")[0]
    assert inputs.shape == data.input_shape == (3, 32, 32)
    assert torch.equal(inputs[0], inputs[2])
    plain, _ = Digits().dataset("val")[0]
    resized = nn.functional.interpolate(plain[None], size=(32, 32), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(inputs[:1], resized, atol=1e-4, rtol=1e-4)


def test_lightning_keeps_the_sampler_sets_its_epoch_and_predicts_the_test_split(tmp_path):
    data, model = Digits(augment=True, batch_size=100, validation_fraction=0.8), Probe()
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    run.fit(model, data)
    assert isinstance(run.train_dataloader.sampler, DistributedSampler)
    for epoch, seen in enumerate(model.epochs):
        loader = Digits(augment=True, batch_size=100, validation_fraction=0.8).train_dataloader()
        loader.sampler.set_epoch(epoch)
        assert torch.equal(torch.cat(seen), torch.cat([inputs for inputs, _ in loader]))
    assert torch.cat(run.predict(model, data)).tolist() == data.dataset("test").labels.tolist()


def test_a_checkpoint_of_another_split_is_refused(tmp_path):
    run = trainer(tmp_path, max_steps=1, max_epochs=1, limit_train_batches=1)
    run.fit(Probe(), Digits())
    checkpoint = run.checkpoint_callback.best_model_path
    trainer(tmp_path).test(Probe(), Digits(), ckpt_path=checkpoint, verbose=False)
    with pytest.raises(UserError, match=r"data \(seed\) = 1: .*another split: its seed is 0"):
        trainer(tmp_path).test(Probe(), Digits(seed=1), ckpt_path=checkpoint)
    with pytest.raises(UserError, match=r"data \(sizes\)"):
        trainer(tmp_path).fit(Probe(), Digits(validation_fraction=0.2), ckpt_path=checkpoint)


def test_the_split_record_is_plain_and_repeats():
    record = Digits().split_record()
    assert record == Digits().state_dict()
    assert record["sizes"] == {"train": 1293, "val": 144, "test": 360}
    assert set(record["digest"]) == set(SPLITS)
    assert len(set(record["digest"].values())) == 3
    other = Digits(seed=1).split_record()
    assert [record["digest"][split] == other["digest"][split] for split in SPLITS] == [False, False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0), ("eval_batch_size", 0), ("num_workers", -1), ("seed", -1), ("validation_fraction", 0.0),
        ("validation_fraction", 1.0), ("image_size", 0), ("channels", 2),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_at_once(field, value):
    with pytest.raises(UserError, match=rf"data\.{field} = {value}"):
        Digits(**{field: value})


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="split = 'valid': must be one of train, val, test"):
        Digits().dataset("valid")


def test_configs_reach_every_option_and_their_help_is_complete(capsys):
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(SplitData, "data")
    config = {"class_path": "datamodules.CIFAR100LT", "init_args": {"imbalance_ratio": 0.5, "root": "r", "seed": 4}}
    data = parser.instantiate_classes(parser.parse_object({"data": config})).data
    assert (data.imbalance_ratio, str(data.root), data.seed, data.batch_size) == (0.5, "r", 4, 64)
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=datamodules.CIFAR100LT"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Size of the rarest class", "Download what is missing", "Side of the square", "Loader processes"):
        assert words in text


def test_no_module_imports_the_text_libraries_when_it_is_imported():
    sources = list(Path(datamodules.__file__).parent.glob("*.py"))
    imported = {
        name.split(".")[0]
        for source in sources
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert len(sources) > 10
    assert "torchvision" in imported
    assert not imported & {"transformers", "datasets", "pyarrow", "pandas", "scipy"}

import gzip
import os

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_files import (
    idx_bytes,
    random_images,
    write_cifar,
    write_fashion,
    write_imagenet,
    write_svhn,
)
from torchvision import datasets

from datamodules import CIFAR10, CIFAR100, CIFAR100LT, SVHN, FashionMNIST, ImageNet
from datamodules.fashion_mnist import debian_folder
from eenet.errors import UserError

TRAIN, TEST = np.tile(np.arange(10), 20), np.tile(np.arange(10), 3)


def stored(data, split, images):
    """Check that a split holds exactly the pixels of `images`, `(n, c, h, w)`, normalised."""
    dataset = data.dataset(split)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    expected = (torch.from_numpy(images[dataset.rows]).float() / 255 - mean) / std
    torch.testing.assert_close(torch.stack([inputs for inputs, _ in dataset]), expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_fashion_mnist_reads_both_layouts_plain_and_packed(tmp_path, packed, below):
    write_fashion(tmp_path / below, TRAIN, TEST, packed)
    data = FashionMNIST(root=str(tmp_path))
    assert (data.name, data.num_classes, data.input_shape) == ("fashion_mnist", 10, (1, 28, 28))
    assert data.split_record()["sizes"] == {"train": 180, "val": 20, "test": 30}
    for split in ("train", "val"):
        stored(data, split, random_images(TRAIN, 1, 28, 28))
        assert data.dataset(split).labels.tolist() == TRAIN[data.dataset(split).rows].tolist()
    stored(data, "test", random_images(TEST, 1, 28, 28))
    inputs, labels = next(iter(data.train_dataloader()))
    assert (inputs.shape, inputs.dtype, labels.dtype) == ((64, 1, 28, 28), torch.float32, torch.int64)


def test_a_limit_is_a_seeded_stratified_choice(tmp_path):
    write_fashion(tmp_path, TRAIN, TEST)
    rows = [FashionMNIST(root=str(tmp_path), limit=100, seed=seed).dataset("train").rows.tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    data = FashionMNIST(root=str(tmp_path), limit=100)
    assert np.bincount(data.dataset("train").labels).tolist() == [9] * 10
    assert data.split_record()["sizes"] == {"train": 90, "val": 10, "test": 30}


@pytest.mark.skipif(debian_folder() is None, reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_debian_package_is_found_and_its_moments_are_the_constants():
    data = FashionMNIST()
    assert data.split_record()["sizes"] == {"train": 54000, "val": 6000, "test": 10000}
    pixels = data.dataset("train").inputs.pixels.float() / 255
    assert data.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-4)
    assert data.std[0] == pytest.approx(pixels.std().item(), abs=1e-4)


def test_missing_fashion_mnist_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as caught:
        FashionMNIST(root=str(tmp_path)).prepare_data()
    assert caught.value.field == "data.root"
    assert caught.value.value == str(tmp_path)
    for words in ("train-images-idx3-ubyte[.gz]", "data.init_args.download: true", "apt install dataset-fashion-mnist"):
        assert words in caught.value.problem


LABELS = "train-labels-idx1-ubyte"
DAMAGE = {
    "empty": (LABELS, b""),
    "truncated": (LABELS, idx_bytes(TRAIN)[:-3]),
    "longer": (LABELS, idx_bytes(TRAIN) + b"1"),
    "not gzip": (f"{LABELS}.gz", idx_bytes(TRAIN)),
    "half a gzip": (f"{LABELS}.gz", gzip.compress(random_images(TRAIN, 9).tobytes())[:-20]),
    "images": (LABELS, idx_bytes(random_images(TRAIN, 28, 28))),
    "too few": (LABELS, idx_bytes(TRAIN[:-1])),
    "out of range": (LABELS, idx_bytes(np.append(TRAIN[:-1], 10))),
    "a class missing": (LABELS, idx_bytes(TRAIN % 9)),
}


@pytest.mark.parametrize(("name", "data"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(tmp_path, name, data):
    write_fashion(tmp_path, TRAIN, TEST)
    (tmp_path / LABELS).unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        FashionMNIST(root=str(tmp_path)).prepare_data()


def test_images_of_another_size_are_refused(tmp_path):
    write_fashion(tmp_path, TRAIN, TEST)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(random_images(TEST, 27, 28)))
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.*\(27, 28\)"):
        FashionMNIST(root=str(tmp_path)).prepare_data()


def cifar(monkeypatch, root, source, key, train, test):
    for name, value in write_cifar(root, source, key, train, test).items():
        monkeypatch.setattr(source, name, value)


def test_cifar10_reads_torchvisions_pickles(tmp_path, monkeypatch):
    cifar(monkeypatch, tmp_path, datasets.CIFAR10, "labels", TRAIN, TEST)
    data = CIFAR10(root=str(tmp_path))
    assert (data.num_classes, data.input_shape) == (10, (3, 32, 32))
    assert data.split_record()["sizes"] == {"train": 180, "val": 20, "test": 30}
    assert np.bincount(data.dataset("val").labels).tolist() == [2] * 10
    batches = [random_images(part, 3072).reshape(-1, 3, 32, 32) for part in np.array_split(TRAIN, 5)]
    stored(data, "train", np.concatenate(batches))
    stored(data, "test", random_images(TEST, 3, 32, 32))


def test_only_training_images_are_augmented(tmp_path, monkeypatch):
    cifar(monkeypatch, tmp_path, datasets.CIFAR10, "labels", TRAIN, TEST)
    data = CIFAR10(root=str(tmp_path))
    assert "RandomHorizontalFlip" in repr(data.dataset("train", augmented=True).transform)
    for split in ("val", "test"):
        plain, augmented = (data.loader(split, augmented) for augmented in (False, True))
        for (first, _), (second, _) in zip(plain, augmented, strict=True):
            assert torch.equal(first, second)
    same = [torch.equal(data.dataset("train")[i][0], data.dataset("train", True)[i][0]) for i in range(30)]
    assert sum(same) < 10


def test_the_long_tail_is_cut_from_cifar100(tmp_path, monkeypatch):
    train, test = np.tile(np.arange(100), 20), np.tile(np.arange(100), 2)
    cifar(monkeypatch, tmp_path, datasets.CIFAR100, "fine_labels", train, test)
    full = CIFAR100(root=str(tmp_path))
    assert np.bincount(full.dataset("train").labels).tolist() == [18] * 100
    data = CIFAR100LT(root=str(tmp_path), imbalance_ratio=0.25)
    counts = sum(np.bincount(data.dataset(split).labels, minlength=100) for split in ("train", "val"))
    assert counts.tolist() == [round(20 * 0.25 ** (c / 99)) for c in range(100)]
    assert (counts[0], counts[99]) == (20, 5)
    assert np.bincount(data.dataset("test").labels).tolist() == [2] * 100
    assert not set(data.dataset("train").rows) & set(data.dataset("val").rows)
    with pytest.raises(UserError, match=r"class .* has no training samples"):
        CIFAR100LT(root=str(tmp_path)).prepare_data()


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_a_wrong_imbalance_is_refused(ratio):
    with pytest.raises(UserError, match=rf"data\.imbalance_ratio = {ratio}"):
        CIFAR100LT(imbalance_ratio=ratio)


def test_missing_and_damaged_cifar_files_are_named(tmp_path, monkeypatch):
    missing = r"cifar-10-batches-py/data_batch_1.*misses.*data\.init_args\.download: true"
    with pytest.raises(UserError, match=missing):
        CIFAR10(root=str(tmp_path)).prepare_data()
    cifar(monkeypatch, tmp_path, datasets.CIFAR10, "labels", TRAIN, TEST)
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"damaged cifar-10-batches-py/data_batch_3 .*MD5"):
        CIFAR10(root=str(tmp_path)).prepare_data()


def test_a_failed_download_is_one_error(tmp_path, monkeypatch):
    def offline(self):
        raise RuntimeError("no route")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(UserError, match=r"data\.download = True: .*no route"):
        CIFAR10(root=str(tmp_path), download=True).prepare_data()


def test_a_download_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(
        datasets.FashionMNIST, "download", lambda self: write_fashion(tmp_path / "FashionMNIST/raw", TRAIN, TEST)
    )
    data = FashionMNIST(root=str(tmp_path), download=True)
    assert data.split_record()["sizes"]["test"] == 30


def test_svhn_reads_mat_files_and_adds_the_extra_ones(tmp_path, monkeypatch):
    extra = np.repeat(np.arange(10), 7)
    table = write_svhn(tmp_path, datasets.SVHN, {"train": TRAIN, "test": TEST, "extra": extra})
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    data = SVHN(root=str(tmp_path))
    assert data.split_record()["sizes"] == {"train": 180, "val": 20, "test": 30}
    stored(data, "train", random_images(TRAIN, 32, 32, 3).transpose(0, 3, 1, 2))
    assert data.dataset("test").labels.tolist() == TEST.tolist()
    assert "Flip" not in repr(data.dataset("train", augmented=True).transform)
    assert "RandomCrop" in repr(data.dataset("train", augmented=True).transform)
    assert SVHN(root=str(tmp_path), extra=True).split_record()["sizes"] == {"train": 243, "val": 27, "test": 30}
    (tmp_path / "extra_32x32.mat").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged extra_32x32\.mat .*MD5"):
        SVHN(root=str(tmp_path), extra=True).prepare_data()
    (tmp_path / "extra_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"misses extra_32x32\.mat"):
        SVHN(root=str(tmp_path), extra=True).prepare_data()


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_labels_out_of_range_are_refused_behind_right_checksums(tmp_path, monkeypatch, name):
    wrong = np.append(TRAIN[:-1], 11)
    if name == "cifar10":
        cifar(monkeypatch, tmp_path, datasets.CIFAR10, "labels", wrong, TEST)
        data = CIFAR10(root=str(tmp_path))
    else:
        table = write_svhn(tmp_path, datasets.SVHN, {"train": wrong, "test": TEST})
        monkeypatch.setattr(datasets.SVHN, "split_list", table)
        data = SVHN(root=str(tmp_path))
    with pytest.raises(UserError, match="label 11 of sample 199 is not one of the 10 classes"):
        data.prepare_data()


CLASSES = ["n01440764", "n01443537", "n02102040"]


@pytest.fixture
def imagenet(tmp_path):
    write_imagenet(tmp_path, CLASSES, train=10, val=2)
    return tmp_path


def test_imagenet_folders_are_read_resized_and_split(imagenet):
    data = ImageNet(root=str(imagenet), image_size=32, validation_fraction=0.5)
    assert (data.num_classes, data.input_shape) == (3, (3, 32, 32))
    assert data.split_record()["sizes"] == {"train": 15, "val": 15, "test": 6}
    assert np.bincount(data.dataset("val").labels).tolist() == [5, 5, 5]
    inputs, labels = next(iter(data.train_dataloader()))
    assert (inputs.shape, inputs.dtype, labels.dtype) == ((15, 3, 32, 32), torch.float32, torch.int64)
    assert "RandomResizedCrop" in repr(data.train_dataset().transform)
    assert "Random" not in repr(data.dataset("val", augmented=True).transform)
    assert next(iter(data.test_dataloader()))[1].tolist() == [0, 0, 1, 1, 2, 2]


def test_imagenet_evaluates_the_centre_of_the_resized_image(imagenet):
    data = ImageNet(root=str(imagenet), image_size=28)
    with Image.open(imagenet / "val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
    small = torch.nn.functional.interpolate(pixels[None], size=(32, 32), mode="bilinear", antialias=True)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.preprocessing.mean, data.preprocessing.std))
    expected = (small[:, 2:30, 2:30] / 255 - mean) / std
    torch.testing.assert_close(data.dataset("test")[0][0], expected, atol=0.03, rtol=0)


def test_imagenet_takes_the_first_or_the_named_classes(imagenet):
    first = ImageNet(root=str(imagenet), classes=2)
    assert (first.num_classes, first.class_names) == (2, CLASSES[:2])
    assert first.split_record()["sizes"]["test"] == 4
    named = ImageNet(root="nowhere", classes=[CLASSES[2], CLASSES[0]])
    assert (named.num_classes, named.class_names) == (2, [CLASSES[0], CLASSES[2]])


def test_an_image_fingerprint_follows_size_and_time(imagenet):
    def fingerprint(split="test"):
        return ImageNet(root=str(imagenet), image_size=32).fingerprint(split)

    before, train = fingerprint(), fingerprint("train")
    assert before == fingerprint()
    path = imagenet / "val" / CLASSES[1] / f"{CLASSES[1]}_1.JPEG"
    os.utime(path, ns=(0, 5))
    touched = fingerprint()
    assert touched != before
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(0, 5))
    assert fingerprint() not in (before, touched)
    assert fingerprint("train") == train


def test_imagenet_errors_name_the_folder_or_the_file(imagenet):
    with pytest.raises(UserError, match=r"data\.root = '.*nowhere/train'.*one folder per class"):
        ImageNet(root=str(imagenet / "nowhere")).prepare_data()
    for classes in (1, ["n01440764"]):
        with pytest.raises(UserError, match=r"data\.classes"):
            ImageNet(root=str(imagenet), classes=classes)
    with pytest.raises(UserError, match=r"data\.classes = 4: .*holds 3 classes"):
        ImageNet(root=str(imagenet), classes=4).prepare_data()
    with pytest.raises(UserError, match="misses the folders of the classes n9"):
        ImageNet(root=str(imagenet), classes=["n01440764", "n9"]).prepare_data()
    for damaged in (b"", b"\xff\xd8\xff", None):
        path = imagenet / "val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
        path.write_bytes(path.read_bytes()[:500] if damaged is None else damaged)
        with pytest.raises(UserError, match=rf"{CLASSES[0]}_0\.JPEG.*not a readable image"):
            ImageNet(root=str(imagenet), image_size=32).dataset("test")[0]
        write_image = Image.fromarray(np.zeros((50, 50, 3), np.uint8) + np.arange(50, dtype=np.uint8)[:, None])
        write_image.save(path)
    for path in (imagenet / "val" / CLASSES[2]).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=rf"a class has no images: .*{CLASSES[2]}"):
        ImageNet(root=str(imagenet)).prepare_data()

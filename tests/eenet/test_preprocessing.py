"""Preprocessing against the libraries that it is taken from, and whose it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from datamodules import CIFAR10, Digits, ImageFolder
from eenet.backbones import ResNet, Traced, ViT
from eenet.backbones.preprocessing import model_preprocessing
from eenet.errors import UserError
from eenet.preprocessing import Preprocessing

PHOTOGRAPH = Image.fromarray(np.random.RandomState(0).randint(0, 256, (300, 401, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "vit_base_patch16_clip_224", "mobilevit_s"])
@pytest.mark.parametrize("size", [None, 160])
def test_a_photograph_becomes_what_timm_makes_of_it(name: str, size: int | None) -> None:
    asked = {} if size is None else {"img_size": size}
    config = resolve_data_config(asked, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    own = Preprocessing.from_timm(config)
    assert torch.equal(own.transform()(PHOTOGRAPH), create_transform(**config)(PHOTOGRAPH))
    assert Preprocessing.from_dict(json.loads(json.dumps(own.to_dict()))) == own


PROCESSORS = {
    "ViTImageProcessorPil": {},
    "DeiTImageProcessorPil": {},
    "CLIPImageProcessorPil": {},
    "ConvNextImageProcessorPil": {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
    "BeitImageProcessorPil": {"size": {"height": 256, "width": 256}, "do_center_crop": True},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_photograph_becomes_what_transformers_makes_of_it(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    processor = getattr(transformers, name)(**PROCESSORS[name])
    config = json.loads(processor.to_json_string())
    photograph = PHOTOGRAPH.crop((0, 0, 400, 300))  # margins that are even
    expected = torch.as_tensor(processor(photograph, return_tensors="pt")["pixel_values"][0])
    found = Preprocessing.from_processor(config).transform()(photograph)
    assert found.shape == expected.shape
    level = 1 / 255 / min(config["image_std"])
    assert (found - expected).abs().max() <= 1.01 * level


@pytest.mark.parametrize(
    "data",
    [Digits(), Digits(image_size=12, channels=3), CIFAR10(image_size=64)],
    ids=["digits", "large digits", "cifar10"],
)
def test_a_stored_image_passes_its_data_sets_own_transform(data: Digits) -> None:
    channels, height, width = data.stored_shape
    pixels = np.random.RandomState(0).randint(0, data.levels + 1, (height, width, channels)).astype(np.uint8)
    image = Image.fromarray(np.rint(pixels * 255.0 / data.levels).astype(np.uint8).squeeze())
    expected = data.transform(augmented=False)(torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(data.preprocessing.transform()(image), expected)
    assert data.preprocessing.input_shape == tuple(expected.shape) == data.input_shape


def weights(folder: Path, name: str, **arguments: object) -> str:
    torch.save(timm.create_model(name, **arguments).state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


def test_weights_bring_timms_config_at_the_size_of_the_backbone_and_random_ones_nothing(tmp_path: Path) -> None:
    small = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    given = weights(tmp_path, "vit_tiny_patch16_224", num_classes=4, img_size=96, **small)
    backbone = ViT("vit_tiny_patch16_224", 4, 96, pretrained=given, overrides=small)
    found = model_preprocessing(backbone)
    assert found is not None
    assert (found.mean, found.interpolation, found.size, found.resize) == ((0.5,) * 3, "bicubic", (96, 96), 106)
    assert "vit_tiny_patch16_224" in found.source
    assert model_preprocessing(ResNet("resnet18", 4, 32)) is None


def test_a_folder_of_weights_brings_its_own_image_processor(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(num_labels=3, image_size=16, patch_size=8, **small)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    found = model_preprocessing(Traced(f"transformers:{tmp_path}", pooling="first"))
    assert found is not None
    assert (found.mean, found.size) == ((0.1, 0.2, 0.3), (16, 16))


@pytest.fixture
def images(tmp_path: Path) -> str:
    for name, level in (("a", 51), ("b", 102)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (20, 20), (level, 0, 255)).save(tmp_path / "train" / name / f"{number}.png")
    return str(tmp_path)


OF_MODEL = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, 248, "bicubic", source="weights")


def test_the_checkpoints_comes_first_then_the_weights_then_the_images(images: str) -> None:
    def settled(recorded: Preprocessing | None, of_model: Preprocessing | None, **given: object) -> Preprocessing:
        data = ImageFolder(images, **given)
        data.settle(recorded, of_model, (3, 16, 16))
        assert data.split_record()["preprocessing"] == data.preprocessing.to_dict()
        return data.preprocessing

    own = settled(None, None)
    assert own.mean == pytest.approx((0.3, 0, 1), abs=1e-3)
    assert own.std == pytest.approx((0.1, 0.001, 0.001), abs=1e-3)
    assert settled(None, OF_MODEL) == OF_MODEL.at((16, 16))
    assert settled(None, OF_MODEL, preprocessing="data").mean == own.mean
    assert settled(own, OF_MODEL) == own
    plain = settled(None, OF_MODEL, mean=[0.1, 0.2, 0.3], resize=[16, 16])
    assert (plain.mean, plain.std) == ((0.1, 0.2, 0.3), OF_MODEL.std)
    assert (plain.resize, plain.interpolation) == ((16, 16), "bicubic")
    assert plain.source == "weights, mean, resize given"


def test_other_preprocessing_than_a_checkpoints_is_refused(images: str) -> None:
    recorded = OF_MODEL.at((16, 16))
    with pytest.raises(UserError, match=r"data\.mean = \(0\.1.*was trained with \(0\.5.*leave it out to adopt"):
        ImageFolder(images, mean=[0.1] * 3).settle(recorded, None, (3, 16, 16))
    with pytest.raises(UserError, match=r"data\.preprocessing = 'model': the weights do not say"):
        ImageFolder(images, preprocessing="model").settle(None, None, (3, 16, 16))
    data = ImageFolder(images, image_size=16)
    data.settle(recorded, None, (3, 16, 16))
    state, other = data.state_dict(), ImageFolder(images, image_size=16)
    other.settle(None, None, (3, 16, 16))
    with pytest.raises(UserError, match=r"data\.mean = .*the checkpoint was trained with \[0\.5"):
        other.load_state_dict(state)
    data.load_state_dict(state)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"mean": [0.5]}, r"data\.mean = \[0\.5\]: needs 3 finite"),
        ({"std": [0.5, 0.0, 0.5]}, r"data\.std = .*above 0"),
        ({"resize": 100, "image_size": 224}, r"data\.resize = 100: must be at least the input's 224 by 224"),
        ({"interpolation": "cubic"}, "is no known mode and interpolation"),
        ({"preprocessing": "mine"}, r"data\.preprocessing = 'mine': must be one of auto, model, data"),
        ({"channels": 4}, r"data\.channels = 4"),
    ],
)
def test_wrong_preprocessing_is_refused(given: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        ImageFolder("images", **given)

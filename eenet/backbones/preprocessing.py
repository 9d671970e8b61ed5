"""How the weights of a backbone expect their images, where the library that published them says so."""

from inspect import signature
from pathlib import Path
from typing import Any

from eenet.backbones.base import StagedBackbone
from eenet.described import describe
from eenet.errors import UserError
from eenet.preprocessing import Preprocessing
from eenet.reading import read_json

PROCESSOR = "preprocessor_config.json"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 224 / 256, "crop_mode": "center"}


def model_preprocessing(backbone: StagedBackbone) -> Preprocessing | None:
    """What stands between an image and a backbone with weights of its own, at the size that the backbone takes.

    Args:
        backbone: Reads images.

    Returns:
        timm's data config, torchvision's default, or the image processor in the folder of a transformers model; `None`
        where the weights are random or nothing is known of them.
    """
    if backbone.input_shape is None or len(backbone.input_shape) != 3 or not has_weights(backbone):
        return None
    height, width = backbone.input_shape[1:]
    found = None
    for module in backbone.modules():
        if hasattr(module, "pretrained_cfg"):
            found = from_timm(module, backbone.input_shape)
        elif type(module).__module__.startswith("torchvision.models."):
            config = {"input_size": backbone.input_shape, "interpolation": "bilinear", **IMAGENET}
            found = Preprocessing.from_timm(config, "torchvision's default")
        elif folder := getattr(getattr(module, "config", None), "_name_or_path", None):
            found = from_folder(Path(folder))
        if found is not None:
            return found.at((height, width))
    return None


def has_weights(backbone: StagedBackbone) -> bool:
    """Whether a backbone was made with weights: those of a model's folder, or as its argument `pretrained` says.

    Without such an argument, it was.
    """
    if getattr(backbone, "loaded", False):
        return True
    try:
        given = describe(backbone)["init_args"]
    except UserError:  # a model of one's own, given as an object
        return True
    return bool(given.get("pretrained", "pretrained" not in signature(type(backbone)).parameters))


def from_timm(model: Any, input_shape: tuple[int, ...]) -> Preprocessing:
    """timm's data config of a model at the size that was asked for, which `pretrained_cfg` does not know."""
    from timm.data import resolve_data_config

    cfg = dict(model.pretrained_cfg)
    name = ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag"))))
    config = resolve_data_config(pretrained_cfg=cfg)
    return Preprocessing.from_timm({**config, "input_size": input_shape}, f"timm's {name}")


def from_folder(folder: Path) -> Preprocessing | None:
    """The image processor that lies beside the weights of a transformers model, `None` where there is none."""
    file = folder / PROCESSOR
    if not file.is_file():
        return None
    return Preprocessing.from_processor(read_json(file), f"{folder.name}/{PROCESSOR}")

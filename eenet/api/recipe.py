"""Configurations without a file: a model and a folder of images by their names, and a method."""

from typing import Any

from eenet.api.opening import build
from eenet.errors import UserError

EXITS = {
    "jei_dnn": ("JointExits", "UncertaintyGate", {"tradeoff": 0.05, "phase_batches": 50}),
    "decoupled": ("DecoupledExits", "ConfidenceGate", {}),
    "l2w_den": ("WeightedExits", "ConfidenceGate", {}),
}
"""Routine, gate and settings of each method that puts exits on a backbone."""

FAMILIES = {"resnet": "ResNet", "wide_resnet": "ResNet", "vit_": "ViT", "deit": "ViT"}
"""Families of their own, by how timm's names begin; others are traced."""


def recipe(
    model: str,
    data: str,
    method: str = "jei_dnn",
    *,
    folder: str | None = None,
    epochs: int = 15,
    image_size: int | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Configurations of `eenet fit`: one that trains the backbone, and one that puts exits on it.

    Args:
        model: `timm/NAME`.
        data: A folder or table of images, as `datamodules.ImageFolder` reads it.
        method: `backbone`, `jei_dnn`, `decoupled` or `l2w_den`.
        folder: Of the run; the backbone's has `_backbone` after it.
        epochs: Of each training.
        image_size: Pixels; timm's own by default.
        pretrained: Begin with timm's weights.
        seed: Of weights, batches and splits that are cut.

    Raises:
        UserError: An unknown model or method, no image, or no epoch.
    """
    library, _, name = model.partition("/")
    if library != "timm" or not name:
        raise UserError("model", model, "must be timm/NAME, as timm/resnet18.a1_in1k; others need a configuration")
    if method not in ("backbone", *EXITS):
        raise UserError("method", method, f"must be one of {', '.join(('backbone', *EXITS))}")
    if epochs < 1:
        raise UserError("epochs", epochs, "must be at least 1")
    images = {"class_path": "datamodules.ImageFolder", "init_args": {"root": data, "seed": seed}}
    found = build({"data": images}).data
    found.prepare_data()
    folder = folder or f"runs/{found.name}_{name.partition('.')[0]}_{method}"
    size = image_size or usual_size(name)
    trainer = {"max_epochs": epochs, "log_every_n_steps": 5}
    first = {
        "seed_everything": seed,
        "trainer": {"default_root_dir": folder if method == "backbone" else f"{folder}_backbone", **trainer},
        "model": {
            "class_path": "lightning_modules.BackboneTraining",
            "init_args": {"backbone": backbone(name, found.num_classes, size, pretrained)},
        },
        "data": {**images, "init_args": {**images["init_args"], "augment": True}},  # type: ignore[dict-item]
    }
    if method == "backbone":
        return [first]
    routine, gate, settings = EXITS[method]
    if method == "jei_dnn":
        settings = {**settings, "warmup_epochs": max(1, epochs // 3)}
    network = {
        "backbone": backbone(name, found.num_classes, size, False),
        "exits": {"fractions": [0.25, 0.5, 0.75]},
        "inference_module": {"class_path": "eenet.inference_modules.LinearHead", "init_args": {"normalize": True}},
        "gate": {"class_path": f"eenet.gates.{gate}"},
    }
    second = {
        "seed_everything": seed,
        "trainer": {"default_root_dir": folder, **trainer},
        "model": {
            "class_path": f"lightning_modules.{routine}",
            "init_args": {
                "backbone_checkpoint": f"{folder}_backbone",
                "network": {"class_path": "eenet.network.EarlyExitNetwork", "init_args": network},
                "features": "memory",
                **settings,
            },
        },
        "data": images,
    }
    return [first, second]


def backbone(name: str, num_classes: int, image_size: int, pretrained: bool) -> dict[str, Any]:
    """The configuration of a timm model as a backbone."""
    family = next((found for begin, found in FAMILIES.items() if name.startswith(begin)), None)
    common = {"num_classes": num_classes, "pretrained": pretrained}
    if family is not None:
        kind, given = family, {"name": name, "image_size": image_size}
    else:
        kind, given = "Traced", {"model": f"timm:{name}", "input_shape": [3, image_size, image_size]}
    return {"class_path": f"eenet.backbones.{kind}", "init_args": {**given, **common}}


def usual_size(name: str) -> int:
    """Pixels of the images that a timm model was trained on."""
    import timm

    found = timm.get_pretrained_cfg(name)
    return 224 if found is None else found.input_size[-1]

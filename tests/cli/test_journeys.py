"""The page of three journeys on real digits: a model of each library, from weights of the user's own to an export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import eenet
import eenet.runtime
from eenet.cli.main import main
from tests.test_howto import blocks, commands

SHORT = ["--trainer.max_epochs=4", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def own_model(name: str) -> nn.Module:
    """The model with the weights that the page wrote, made by its library alone."""
    import timm
    import torchvision
    from safetensors.torch import load_file
    from transformers import AutoModelForImageClassification

    if name == "my_vit_onnx":
        return AutoModelForImageClassification.from_pretrained("my_vit", local_files_only=True)
    model: Any = {"my_resnet": torchvision.models.resnet18, "my_convnext": timm.models.convnext_atto}[name]
    states = {
        "my_resnet": lambda: torch.load("resnet.pth", weights_only=True),
        "my_convnext": lambda: load_file("convnext.safetensors"),
    }
    made = model(num_classes=10)
    made.load_state_dict(states[name]())
    return made


def write_digits() -> None:
    """Forty images of each digit in the folder of its class, and three beside."""
    digits = load_digits()
    for digit in range(10):
        folder = Path("images_by_class") / str(digit)
        folder.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == digit][:40]):
            Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).save(folder / f"{number}.png")
    Path("images").mkdir()
    for digit in range(3):
        Path(f"images_by_class/{digit}/0.png").rename(f"images/{digit}.png")


@pytest.mark.slow
@torch.no_grad()
def test_three_models_become_exported_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    write_digits()
    for language, name, text in blocks("howto/three_models.md"):
        if name:
            Path(name).write_text(text)
        elif language == "python":
            exec(compile(text, "three_models.md", "exec"), {})
        else:
            for command in commands(text):
                main([*command, *SHORT] if command[0] == "fit" else command)
    paths = sorted(Path("images_by_class").glob("*/*.png"))
    for name in ("my_resnet", "my_convnext"):
        deployed = eenet.runtime.load(name)
        images = torch.stack([deployed.transform(path) for path in paths])
        routed = deployed(images)
        expected = own_model(name).eval()(images)
        last = routed.exits == 3
        assert 0 < last.sum() < len(images), name
        torch.testing.assert_close(
            routed.logits[last], getattr(expected, "logits", expected)[last], atol=1e-3, rtol=1e-3
        )
    deployed = eenet.runtime.load("my_vit_onnx")
    images = torch.stack([deployed.transform(path) for path in paths])
    processor = transformers.AutoImageProcessor.from_pretrained("my_vit", local_files_only=True)
    expected = processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(images, expected)
    logits = eenet.open_run("runs/my_vit").network.eval()(images)[0]
    torch.testing.assert_close(logits[:, -1], own_model("my_vit_onnx").eval()(images).logits)
    routed = deployed(images)
    expected = logits[torch.arange(len(images)), routed.exits]
    torch.testing.assert_close(routed.logits, expected, atol=1e-3, rtol=1e-3)
    assert len(Path("labels.csv").read_text().splitlines()) == 4

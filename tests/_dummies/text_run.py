"""A configuration that trains a tiny random decoder on whole texts in seconds."""

from pathlib import Path
from typing import Any

from tests._dummies.token_run import token_data, write_run
from tests._dummies.word_decoder import write_decoder


def write_text_config(folder: Path, method: str, layers: int = 4, lr: float = 0.02, **arguments: Any) -> Path:
    """A decoder in `folder/model`, its prompts, and the configuration of a run in `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = {"task": "tokens", "pretrained": write_decoder(folder / "model", layers), "example_tokens": 12}
    values = {
        "backbone": {"class_path": "eenet.backbones.Gpt", "init_args": backbone},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}},
        **arguments,
    }
    data = {**token_data(folder, batch_size=4), "class_path": "datamodules.ContinuedTexts"}
    return write_run(folder, method, values, data)

"""A configuration that trains a tiny random decoder on whole texts in seconds."""

from pathlib import Path
from typing import Any

import yaml

from tests._dummies.token_run import token_data
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
    data = token_data(folder, batch_size=4)
    trainer = {"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    config = {
        "seed_everything": 0,
        "trainer": {"default_root_dir": str(folder / "run"), **trainer, **quiet},
        "model": {"class_path": f"lightning_modules.{method}", "init_args": values},
        "data": {**data, "class_path": "datamodules.ContinuedTexts"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path

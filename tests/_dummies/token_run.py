"""A configuration that trains exits on a tiny random decoder in seconds."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests._dummies.word_decoder import NOUNS, VERBS, write_decoder

LAYERS = 6


def write_prompts(path: Path, count: int = 24) -> str:
    """Prompts of a few known words with references."""
    rows = [
        {
            "prompt": f"the {NOUNS[i % 3]} {VERBS[i % 2]} " + "storm " * (i % 4) + "today " * (i // 4 % 3),
            "reference": f"{NOUNS[i % 3]} today",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def token_data(folder: Path, **options: Any) -> dict[str, Any]:
    """The data of a run, as a configuration has them."""
    task = {"train": write_prompts(folder / "prompts.jsonl"), "test": None, "new_tokens": 6, "max_prompt_tokens": 40}
    values = {"task": {"class_path": "datamodules.nlg.NLG", "init_args": task}, "tokenizer": str(folder / "model")}
    return {"class_path": "datamodules.Continuations", "init_args": {**values, "val_size": 4, **options}}


def write_config(folder: Path, method: str, gate: str, **arguments: Any) -> Path:
    """A decoder of `LAYERS` layers, its prompts, and the configuration of a run in `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = {"task": "tokens", "pretrained": write_decoder(folder / "model", LAYERS), "example_tokens": 12}
    network = {
        "backbone": {"class_path": "eenet.backbones.Gpt", "init_args": backbone},
        "exits": [1, 3],
        "inference_module": {"class_path": "eenet.inference_modules.TiedHead", "init_args": {"rank": 4}},
        "gate": {"class_path": f"eenet.gates.{gate}"},
    }
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}}
    values = {
        "network": {"class_path": "eenet.decoding.network.DecoderNetwork", "init_args": network},
        "optimizer": optimizer,
        **arguments,
    }
    return write_run(folder, method, values, token_data(folder, batch_size=16, prompt_tokens=4))


def write_run(folder: Path, method: str, values: dict[str, Any], data: dict[str, Any]) -> Path:
    """The configuration of a run in `folder/run` that trains for three epochs on the CPU and shows nothing."""
    trainer = {"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    config = {
        "seed_everything": 0,
        "trainer": {"default_root_dir": str(folder / "run"), **trainer, **quiet},
        "model": {"class_path": f"lightning_modules.{method}", "init_args": values},
        "data": data,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path

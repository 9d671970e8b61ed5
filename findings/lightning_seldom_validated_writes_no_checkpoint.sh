#!/bin/sh
# lightning 2.6.6 with torch 2.14.1 (CPU, Python 3.11): a training that is shorter than its validation interval leaves no
# checkpoint. `check_val_every_n_epoch=7` and `max_epochs=2` end with status 0, the default `ModelCheckpoint` in place and
# an empty folder; without that setting the same training writes one. Nothing warns. (A validation interval within an
# epoch, `val_check_interval=2` of 3 batches, leaves a checkpoint of the middle of the last epoch, step 5 of 6.)
#
# Output seen:
#     every epoch: ['epoch=1-step=6.ckpt']
#     every seventh: []
#     every second batch: ['epoch=1-step=5.ckpt'] of 6 steps
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 lightning==2.6.6
cat > "$folder/train.py" <<'PYTHON'
import logging
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
logging.disable(logging.INFO)

from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader


def written(**arguments):
    with tempfile.TemporaryDirectory() as root:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(default_root_dir=root, max_epochs=2, **quiet, **arguments)
        trainer.fit(BoringModel(), DataLoader(RandomDataset(32, 3)), DataLoader(RandomDataset(32, 3)))
        assert trainer.global_step == 6
        return sorted(path.name for path in Path(root).rglob("*.ckpt"))


print("every epoch:", written())
print("every seventh:", written(check_val_every_n_epoch=7))
print("every second batch:", written(val_check_interval=2), "of 6 steps")
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" train.py)
echo "$seen"
[ "$seen" = "every epoch: ['epoch=1-step=6.ckpt']
every seventh: []
every second batch: ['epoch=1-step=5.ckpt'] of 6 steps" ]

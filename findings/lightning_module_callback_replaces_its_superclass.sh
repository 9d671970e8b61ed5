#!/bin/sh
# lightning 2.6.6 with torch 2.14.1 (CPU, Python 3.11): the documentation of `LightningModule.configure_callbacks` says that
# its callbacks take the place of the trainer's "of the same type". They also take the place of those of a *superclass*: a
# module that brings its own subclass of `ModelCheckpoint` silently removes the user's monitored `ModelCheckpoint`, and the
# best weights that were asked for are never kept. A subclass that the trainer was given is not removed by its superclass.
#
# Output seen:
#     module brings a subclass: user's callback kept: False
#     module brings the superclass: user's callback kept: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 lightning==2.6.6
cat > "$folder/train.py" <<'PYTHON'
import logging
import tempfile
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.INFO)

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel


class Own(ModelCheckpoint):
    pass


def kept(brought, given):
    class Module(BoringModel):
        def configure_callbacks(self):
            return [brought]

    with tempfile.TemporaryDirectory() as root:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
        trainer = Trainer(default_root_dir=root, callbacks=[given], **quiet, **limits)
        trainer.fit(Module())
        return given in trainer.callbacks


best = ModelCheckpoint(monitor="x", filename="best")
print("module brings a subclass: user's callback kept:", kept(Own(filename="own"), best))
own = Own(filename="mine")
print("module brings the superclass: user's callback kept:", kept(ModelCheckpoint(filename="plain"), own))
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" train.py)
echo "$seen"
[ "$seen" = "module brings a subclass: user's callback kept: False
module brings the superclass: user's callback kept: True" ]

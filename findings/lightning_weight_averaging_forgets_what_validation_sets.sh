#!/bin/sh
# lightning 2.6.6, torch 2.14.1 (Python 3.11): with EMAWeightAveraging (or any WeightAveraging) what a module keeps in a buffer at the
# end of a validation, such as a threshold chosen there, is lost: the average is swapped away before the module's own
# `on_validation_epoch_end`, so that the value lands in the weights that are thrown away when training ends. By default the buffer ends
# as an average over steps; with `use_buffers=False`, which is documented to leave buffers to the user, with the value of one validation before.
#
# Output seen (3 epochs; each validation sets the buffer to the epoch's number from 1):
#     plain 3.0
#     averaged 1.688
#     buffers not averaged 2.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 lightning==2.6.6 numpy==2.4.6
cat > "$folder/train.py" <<'PYTHON'
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, TensorDataset


class Thresholded(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.register_buffer("threshold", torch.zeros(()))

    def training_step(self, batch):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch):
        pass

    def on_validation_epoch_end(self):
        self.threshold.fill_(self.current_epoch + 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
data = DataLoader(TensorDataset(torch.ones(8, 2)), 4)
for name, callbacks in {
    "plain": [],
    "averaged": [EMAWeightAveraging(decay=0.5)],
    "buffers not averaged": [EMAWeightAveraging(decay=0.5, use_buffers=False)],
}.items():
    model = Thresholded()
    Trainer(max_epochs=3, accelerator="cpu", num_sanity_val_steps=0, callbacks=callbacks, **quiet).fit(model, data, data)
    print(name, round(model.threshold.item(), 3))
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/train.py" 2>/dev/null | grep -E '^(plain|averaged|buffers)')
echo "$seen"
[ "$seen" = "plain 3.0
averaged 1.688
buffers not averaged 2.0" ]

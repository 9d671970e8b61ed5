#!/bin/sh
# torchmetrics 1.9.0 with torch 2.14.1 and scikit-learn 1.7.2 (CPU, Python 3.11): the area under the ROC curve is a matter of
# order alone, and `binary_auroc` takes logits. It puts scores outside [0, 1] through a float32 sigmoid, where all above 17
# are 1: adding a constant to every score changes the area, down to 0.5 for scores near 25. Scores that happen to lie in
# [0, 1] are left alone, so that one sample outside changes how all others are compared. Nothing warns.
#
# Output seen (400 scores, two overlapping classes):
#     shift 0: torchmetrics 0.7505, scikit-learn 0.7504
#     shift 16: torchmetrics 0.7104, scikit-learn 0.7504
#     shift 25: torchmetrics 0.5000, scikit-learn 0.7504
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchmetrics==1.9.0 scikit-learn==1.7.2
cat > "$folder/area.py" <<'PYTHON'
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_auroc

draw = torch.Generator().manual_seed(0)
target = torch.arange(400) % 2
scores = torch.randn(400, generator=draw) + target
for shift in (0, 16, 25):
    area = binary_auroc(scores + shift, target).item()
    print(f"shift {shift}: torchmetrics {area:.4f}, scikit-learn {roc_auc_score(target, scores + shift):.4f}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/area.py")
echo "$seen"
case "$seen" in
*"shift 25: torchmetrics 0.5000, scikit-learn 0.7"*) exit 0 ;;
*) exit 1 ;;
esac

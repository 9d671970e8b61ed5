#!/bin/sh
# lightning 2.6.6, torch 2.14.1 (Python 3.11): the sampler that deals every sample out once, where torch's repeats some to
# make the shares of processes alike, is a subclass of torch's and takes its seed, but shuffles by the epoch alone. Runs of
# different seeds see the samples of every epoch in one and the same order, so a spread over seeds lacks that part of it.
#
# Output seen:
#     DistributedSampler seeds 1 and 2 alike: False
#     UnrepeatedDistributedSampler seeds 1 and 2 alike: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 lightning==2.6.6
cat > "$folder/order.py" <<'PYTHON'
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data.distributed import DistributedSampler

for kind in (DistributedSampler, UnrepeatedDistributedSampler):
    one, two = (list(kind(range(100), num_replicas=1, rank=0, shuffle=True, seed=seed)) for seed in (1, 2))
    print(kind.__name__, "seeds 1 and 2 alike:", one == two)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/order.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "DistributedSampler seeds 1 and 2 alike: False
UnrepeatedDistributedSampler seeds 1 and 2 alike: True" ]

#!/bin/sh
# The Fashion-MNIST part of docs/studies/quee.md: paths whose width never rises, three seeds of heads, predictors and halves.
#   sh benchmarks/quee.sh vit|resnet
# Needs runs/fashion_mnist_<backbone>_backbone; goes on where it was killed.
set -eu
.venv/bin/eenet sweep --config "configs/fashion_mnist/$1_quee.yaml" --folder "runs/study/quee_$1" --seeds 3 --processes 1 \
    --vary model.init_args.network.init_args.max_paths=10 --vary "model.init_args.budgets=[0.02,0.03,0.05,0.1,0.4]" \
    --vary trainer.logger=false

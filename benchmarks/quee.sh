#!/bin/sh
# The Fashion-MNIST part of docs/studies/quee.md: paths whose width never rises, three seeds of heads, predictors and halves.
#   sh benchmarks/quee.sh vit|resnet
#   sh benchmarks/quee.sh static       # JEI-DNN over the ViT at 4 bits, three lambdas
# Needs runs/fashion_mnist_<backbone>_backbone; goes on where it was killed.
set -eu
if [ "$1" = static ]; then
    exec .venv/bin/eenet sweep --config configs/fashion_mnist/vit_quantized_jei_dnn.yaml --folder runs/study/quantized_jei_dnn_vit \
        --seeds 3 --processes 1 --vary model.init_args.tradeoff=0.02,0.1,0.5 --vary model.init_args.features=disk \
        --vary trainer.logger=false --calibrate "--budget-bitops 0.015,0.02,0.025,0.03,0.035,0.04,0.05"
fi
.venv/bin/eenet sweep --config "configs/fashion_mnist/$1_quee.yaml" --folder "runs/study/quee_$1" --seeds 3 --processes 1 \
    --vary model.init_args.network.init_args.max_paths=10 --vary "model.init_args.budgets=[0.02,0.03,0.05,0.1,0.4]" \
    --vary trainer.logger=false

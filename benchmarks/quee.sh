#!/bin/sh
# The studies of docs/studies/quee.md beyond the digits, three seeds of heads, predictors and halves each; goes on where it was killed.
#   sh benchmarks/quee.sh vit|resnet|minilm   # three widths, paths whose width never rises
#   sh benchmarks/quee.sh resnet_all          # the ResNet at 8 and 4 bits, all paths
#   sh benchmarks/quee.sh static              # JEI-DNN over the ViT at 4 bits, three lambdas
# Needs the run of the backbone, such as runs/fashion_mnist_vit_backbone.
set -eu
case "$1" in
vit | resnet)
    set -- "fashion_mnist/$1_quee" "quee_$1" --vary model.init_args.network.init_args.max_paths=10 \
        --vary "model.init_args.budgets=[0.02,0.03,0.05,0.1,0.4]"
    ;;
minilm)
    set -- bbc_news/minilm_quee quee_minilm --vary "model.init_args.budgets=[0.03,0.05,0.1,0.2,0.4]"
    ;;
resnet_all)
    set -- fashion_mnist/resnet_quee quee_resnet_all --vary "model.init_args.network.init_args.widths=[8,4]" \
        --vary "model.init_args.budgets=[0.02,0.03,0.04,0.05,0.1]"
    ;;
static)
    set -- fashion_mnist/vit_quantized_jei_dnn quantized_jei_dnn_vit --vary model.init_args.tradeoff=0.02,0.1,0.5 \
        --vary model.init_args.features=disk --calibrate "--budget-bitops 0.015,0.02,0.025,0.03,0.035,0.04,0.05"
    ;;
*)
    echo "usage: sh benchmarks/quee.sh vit|resnet|minilm|resnet_all|static" >&2
    exit 2
    ;;
esac
config=$1 folder=$2
shift 2
.venv/bin/eenet sweep --config "configs/$config.yaml" --folder "runs/study/$folder" --seeds 3 --processes 1 \
    --vary trainer.logger=false "$@"

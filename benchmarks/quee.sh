#!/bin/sh
# The studies of docs/studies/quee.md, three seeds of heads and predictors each; goes on where it was killed.
#   sh benchmarks/quee.sh resnet_all          # the ResNet at 8 and 4 bits, all paths
#   sh benchmarks/quee.sh vit|resnet|minilm   # three widths, paths whose width never rises
#   sh benchmarks/quee.sh digits              # four widths, all paths; other backbones and splits for each seed
#   sh benchmarks/quee.sh static              # JEI-DNN over the ViT at 4 bits, three lambdas
#   python benchmarks/quee_table.py runs/study/quee_resnet_all
# Needs the run of the backbone, such as runs/fashion_mnist_vit_backbone.
set -eu
budgets=0.015,0.02,0.025,0.03,0.04,0.05,0.07,0.1,0.4
case "$1" in
vit | resnet)
    set -- "fashion_mnist/$1_quee" "quee_$1" --vary model.init_args.network.init_args.max_paths=10 \
        --vary "model.init_args.budgets=[0.012,$budgets]"
    ;;
minilm)
    set -- bbc_news/minilm_quee quee_minilm --vary "model.init_args.budgets=[$budgets]"
    ;;
resnet_all)
    set -- fashion_mnist/resnet_quee quee_resnet_all --vary "model.init_args.network.init_args.widths=[8,4]" \
        --vary "model.init_args.budgets=[0.012,0.015,0.02,0.025,0.03,0.04,0.05,0.06]"
    ;;
digits)
    for seed in 0 1 2; do
        run=runs/study/quee_digits/seed=$seed backbone=runs/study/digits_backbone/seed=$seed
        [ -f "$run/results.json" ] && continue
        .venv/bin/eenet fit --config configs/digits/vit_backbone.yaml --data.init_args.validation_fraction 0.4 \
            --data.init_args.seed "$seed" --seed_everything "$seed" --trainer.default_root_dir "$backbone"
        .venv/bin/eenet fit --config configs/digits/vit_quee.yaml --data.init_args.seed "$seed" \
            --seed_everything "$seed" --model.init_args.backbone_checkpoint "$backbone" \
            --trainer.default_root_dir "$run" --model.init_args.budgets "[$budgets]"
        .venv/bin/eenet test --config "$run/config.yaml"
    done
    exit
    ;;
static)
    set -- fashion_mnist/vit_quantized_jei_dnn quantized_jei_dnn_vit --vary model.init_args.tradeoff=0.02,0.1,0.5 \
        --calibrate "--budget-bitops 0.015,0.02,0.025,0.03,0.035,0.04,0.05"
    ;;
*)
    echo "usage: sh benchmarks/quee.sh resnet_all|vit|resnet|minilm|digits|static" >&2
    exit 2
    ;;
esac
config=$1 folder=$2
shift 2
.venv/bin/eenet sweep --config "configs/$config.yaml" --folder "runs/study/$folder" --seeds 3 --processes 1 \
    --vary model.init_args.features=disk "$@"

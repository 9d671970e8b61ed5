#!/bin/sh
# The study of docs/studies/joint_vs_decoupled.md: every method on one frozen backbone, three seeds, budgets met on validation.
#   sh benchmarks/joint_vs_decoupled.sh vit|resnet
# Needs runs/fashion_mnist_<backbone>_backbone; goes on where it was killed.
set -eu
backbone=$1
runs=runs/study/$backbone
budgets="--budget 0.25,0.5,0.75"

sweep() {  # sweep NAME CONFIG ARGUMENTS...
    name=$1 config=$2
    shift 2
    .venv/bin/eenet sweep --config "configs/fashion_mnist/$config.yaml" --folder "$runs/$name" --seeds 3 \
        --vary model.init_args.features=disk --vary trainer.logger=false --calibrate="$budgets" "$@"
}

set -- "--calibrate=$budgets --policy entropy" "--calibrate=$budgets --policy margin" \
    "--calibrate=$budgets --policy scheduler" "--calibrate=$budgets --policy random"
plain="--calibrate=$budgets --policy max_probability"  # JEI-DNN's modules behind a plain threshold
if [ "$backbone" = vit ]; then
    sweep decoupled vit_decoupled "$@" "--calibrate=--budget 0.5,0.75 --policy patience"
    sweep jei_dnn vit_jei_dnn "$plain" --vary model.init_args.tradeoff=0.02,0.1,0.5
    sweep decoupled_gates vit_decoupled_gates
    sweep boosted vit_boosted
    sweep self_distillation vit_self_distillation
    sweep weighted vit_weighted
else
    sweep decoupled resnet_decoupled "$@"
    sweep jei_dnn resnet_jei_dnn "$plain" --vary model.init_args.tradeoff=0.02,0.1
    sweep decoupled_gates resnet_jei_dnn --vary model.init_args.joint=false
    sweep boosted resnet_decoupled --vary model.init_args.network.init_args.boosted=true
fi
.venv/bin/eenet compare "$runs"/*/*/ --budgets 0.3,0.75 --out "runs/study/comparison_$backbone"

#!/bin/sh
# The runs of docs/studies/stopping.md: exits on a frozen ResNet-14, three seeds, from stored features; goes on where it was killed.
#   sh benchmarks/stopping.sh && python benchmarks/stopping.py --runs runs/stopping/* --rows runs/stopping/rows.jsonl --table
# Needs runs/fashion_mnist_resnet_backbone.
set -eu

fit() {  # fit METHOD STEP SEED ARGUMENTS...
    method=$1 step=$2 seed=$3 folder=runs/stopping/$1_lr$2_seed$3
    shift 3
    [ -f "$folder/checkpoints/finished.txt" ] || .venv/bin/eenet fit --config "configs/fashion_mnist/resnet_$method.yaml" \
        --trainer.default_root_dir "$folder" --seed_everything "$seed" --trainer.max_epochs 8 --trainer.logger false \
        --data.init_args.batch_size 256 --model.init_args.features disk --model.init_args.optimizer.init_args.lr "$step" "$@"
}

for seed in 0 1 2; do
    fit decoupled 0.2 "$seed"
    fit jei_dnn 0.1 "$seed" --model.init_args.phase_batches 50 --model.init_args.warmup_epochs 3
done
fit decoupled 0.05 0  # the steps that validation did not choose
fit jei_dnn 0.02 0 --model.init_args.phase_batches 50 --model.init_args.warmup_epochs 3

#!/bin/sh
# Routed networks on one GPU, in less than 8 minutes and without network: what routes right, and how fast. From the repository's root:
#   PYTHON=python3 OUT=runs/gpu sh benchmarks/gpu.sh          # --tiny for a CPU
# Needs torch of 2.11 or later and NumPy; sections whose library (lightning, transformers, ...) is missing say so. Each section is a process
# with a time limit and writes $OUT/SECTION.json; the table goes to $OUT/table.txt too. Status 0 only where routing was correct.
set -u

PYTHON=${PYTHON:-python3} OUT=${OUT:-runs/gpu} LIMIT=${LIMIT:-450}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
start=$(date +%s)

section() {  # section NAME SECONDS ARGUMENTS...
    name=$1 seconds=$2
    shift 2
    left=$((LIMIT - $(date +%s) + start))
    [ "$seconds" -lt "$left" ] || seconds=$left
    rm -f "$OUT/$name.json"
    if [ "$seconds" -lt 5 ]; then echo "$name: no time is left"; return; fi
    timeout -k 5 "$seconds" "$PYTHON" -W ignore benchmarks/gpu.py "$name" --out "$OUT" "$@" 2>"$OUT/$name.err" || echo "$name: status $?; see $OUT/$name.err"
}

section correctness 90 "$@"
section bench 90 "$@"
section graphs 60 "$@"
section features 45 "$@"
section decoding 75 "$@"
section jei_dnn 75 "$@"
section compiled 200 "$@"
"$PYTHON" benchmarks/gpu.py table --out "$OUT" >"$OUT/table.txt"
status=$?
cat "$OUT/table.txt"
exit $status

#!/usr/bin/env bash
# The library's step on a CPU against the definition's: appends to bench/results/step.jsonl, and to floor.jsonl what binds.
# Then what the input gives, from DATA (ROOT of ROOT/train/CLASS/*.JPEG) or the generated sample, and what watching over a
# search costs. About 40 minutes on 2 cores, during which nothing else should run. PYTHON is the interpreter,
# .venv/bin/python by default.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
saved=$(mktemp)
trap 'rm -f "$saved"' EXIT

step() {
  "$python" -m bench.step --device cpu --warm_up 1 --record "$@"
  echo
}

"$python" -m bench.ceilings --device cpu --record
for against in eager channels-last; do
  step --supernet cell --batch 16 --against $against --rounds 31
  step --supernet cell --batch 16 --against $against --partial_channels 4 --rounds 31
  step --supernet cifar --batch 16 --against $against --rounds 5
  step --supernet pc-cifar --batch 64 --against $against --rounds 3
  for k in 2 4; do
    step --supernet pc-imagenet --batch 16 --against $against --partial_channels $k --rounds 5
    step --supernet mae-imagenet --batch 16 --against $against --partial_channels $k --rounds 5
  done
  step --supernet cifar --batch 64 --against $against --rounds 3
done
for supernet in cell cifar pc-imagenet mae-imagenet; do
  "$python" -m bench.floor --supernet $supernet --batch 16 --record
done
"$python" -m bench.floor --supernet pc-cifar --batch 64 --rounds 3 --record
"$python" -m bench.floor --network darts-cifar --batch 16 --rounds 3 --record
for against in eager channels-last; do
  step --network darts-cifar --batch 16 --against $against --rounds 5
  step --network darts-cifar --batch 32 --against $against --rounds 3
  step --network darts-imagenet --batch 8 --against $against --rounds 3
  step --network nasnet-cifar --batch 16 --against $against --rounds 3
  step --network nasbench201 --batch 64 --against $against --rounds 5
done
step --network darts-cifar --layers 5 --batch 16 --against compile --rounds 5
for network in darts-cifar darts-imagenet; do
  step --network $network --batch 16 --evaluate --against folded --rounds 5
done
for supernet in mae-imagenet pc-cifar; do
  "$python" -m bench.scaling --supernet $supernet --batch 16 --ranks 2 --record
done
"$python" -m bench.interop --record
for size in 64 224; do
  "$python" -m bench.loader ${DATA:+--data "$DATA"} --image_size $size --record
done
"$python" -m bench.sass --triton 3.6.0 --record  # predicted from machine code, nothing is timed
OMP_NUM_THREADS=1 "$python" -m bench.overheads --record  # as the sample is searched: in one thread
"$python" -m pytest bench/test_patch_mask.py bench/test_random_resized_crop.py --full-size --benchmark-json "$saved"
"$python" -m bench.records add "$saved"

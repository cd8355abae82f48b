#!/usr/bin/env bash
# The CPU baseline that later speed is measured against: appends to bench/results/step.jsonl. About 12 minutes on 2 cores,
# during which nothing else should run. PYTHON is the interpreter, .venv/bin/python by default.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
  "${PYTHON:-.venv/bin/python}" -m bench.step --device cpu --warm_up 1 --record "$@"
  echo
}

"${PYTHON:-.venv/bin/python}" -m bench.ceilings --device cpu --record
for against in eager channels-last; do
  step --supernet cell --batch 16 --against $against
  step --supernet cell --batch 16 --against $against --partial_channels 4
  step --supernet cifar --batch 16 --against $against --rounds 5
  step --supernet cifar --batch 64 --against $against --rounds 3
done
step --supernet pc-cifar --batch 64 --rounds 3
for k in 2 4; do
  step --supernet pc-imagenet --batch 16 --partial_channels $k --rounds 5
  step --supernet mae-imagenet --batch 16 --partial_channels $k --rounds 5
done

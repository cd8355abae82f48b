#!/usr/bin/env bash
# One command on a bare GPU machine (torch, Triton, nvcc, cmake, ninja, pybind11, pytest; no network): builds the native
# module in a copy of the tree, runs the GPU tests and compute-sanitizer over a small case, times the kernels against what
# binds them and the step against its baselines, appends records to OUT_DIR.
#
#   bench/gpu.sh [--quick] [--commit ID] [--device cpu] [OUT_DIR]        OUT_DIR: bench/results
#
#   --quick       within 3 minutes instead of 9
#   --commit ID   the commit that records name, for a copy of the tree that has no repository
#   --device cpu  tiny sizes on the CPU, to see that this script works where there is no GPU
#
# PYTHON is the interpreter, python3 by default. Each part has a time limit of its own (on a CPU, six times as long), and one
# that fails does not stop the next. Exit status: 0, 1 if a part failed or found no time, 2 for wrong use or no GPU.
set -uo pipefail

source_tree=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out=$source_tree/bench/results
quick=0 device=cuda commit=''

refuse() {
  echo "bench/gpu.sh: $1" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --quick) quick=1 ;;
    --commit | --device)
      (($# > 1)) || refuse "$1 wants a value"
      declare "${1#--}=$2"
      shift
      ;;
    -*) refuse "unknown option $1; usage: bench/gpu.sh [--quick] [--commit ID] [--device cpu] [OUT_DIR]" ;;
    *) out=$1 ;;
  esac
  shift
done
[[ $device == cpu || $device == cuda ]] || refuse "--device $device: not cpu or cuda"
"$python" -c 'import torch' 2>/dev/null || refuse "$python has no torch; name another interpreter with PYTHON="
if [[ $device == cuda ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  refuse "torch sees no CUDA GPU on this machine; --device cpu tries the script itself, in tiny sizes"
fi

# the parts run in another folder; not realpath, which would leave a virtual environment
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/tree" && out=$(cd "$out" && pwd)
export FASTDARTS_COMMIT=${commit:-$(cd "$source_tree" && "$python" -c 'from fastdarts import provenance; print(provenance.commit())')}
cd "$source_tree"
cp -r fastdarts kernels csrc bench tests setup.py pyproject.toml CMakeLists.txt "$work/tree"
cd "$work/tree"
rm -f fastdarts/_C*.so fastdarts/_build.json

failed=0
patience=1
[[ $device == cuda ]] || patience=6  # a small machine, with others at work
deadline=$((patience * (quick ? 165 : 520)))
parallel=()  # the GPU tests spend their time in Triton's compiler
if [[ $device == cuda ]] && "$python" -c 'import xdist' 2>/dev/null; then
  cores=$(nproc)
  parallel=(-n $((cores < 12 ? cores : 12)))
fi

part() { # part NAME LIMIT COMMAND...: what it prints goes to a log; lines of JSON are records
  local name=$1 limit=$((patience * $2)) began=$SECONDS status=0 why='' kept
  shift 2
  kept=$out/failed-${name//[^A-Za-z0-9]/-}.log
  rm -f "$kept"  # an earlier run's
  local left=$((deadline - SECONDS))
  if ((left < 5)); then
    echo "no time  $name"
    failed=1
    return
  fi
  timeout -s INT -k 10 $((left < limit ? left : limit)) "$@" >"$work/log" 2>&1 || status=$?
  grep '^{' "$work/log" >>"$work/records.jsonl"
  if ((status == 0)); then
    printf 'ok       %s (%d s)\n' "$name" $((SECONDS - began))
  else
    ((status != 124)) || why=', time limit'
    ((status != 137)) || why=', killed: at its time limit, or by the kernel where memory gave out'
    printf 'FAILED   %s (%d s, status %d%s)\n' "$name" $((SECONDS - began)) $status "$why"
    tail -n 30 "$work/log" | sed 's/^/         /'
    cp "$work/log" "$kept"
    failed=1
  fi
}

step() { # step LIMIT OPTIONS...: one comparison
  local limit=$1
  shift
  part "step $*" "$limit" "$python" -m bench.step "$@" --device "$device" --json --record --results "$out"
}

input() { # input LIMIT OPTIONS...: routes of a generated sample's images
  local limit=$1
  shift
  part "loader $*" "$limit" "$python" -m bench.loader "$@" --device "$device" --json --record --results "$out"
}

sanitize() { # sanitize TOOL: a small case of each op under compute-sanitizer, where that works
  local name="compute-sanitizer $1" sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  if [[ -z $sanitizer ]]; then
    echo "skipped  $name: not installed"
  elif ! timeout -k 5 40 "$sanitizer" --tool "$1" "$python" -c 'import torch; torch.ones(1, device="cuda").sum().item()' \
    >"$work/log" 2>&1; then
    echo "skipped  $name: it does not work here: $(grep -m 1 -i -E 'error|fail' "$work/log" || tail -n 1 "$work/log")"
  else
    part "$name" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$1" --error-exitcode 1 \
      "$python" -m bench.gpu_cases
  fi
}

touch "$work/records.jsonl"
part "build the native module" $((quick ? 100 : 150)) "$python" setup.py build_ext --inplace
part "native module loads" 60 "$python" -m fastdarts.info --require-native
part "GPU tests" $((quick ? 75 : 200)) "$python" -m pytest tests -m 'gpu and not campaign' -q -p no:cacheprovider "${parallel[@]}"
part "ceilings" 60 "$python" -m bench.ceilings --device "$device" --record --results "$out"
if [[ $device == cuda ]]; then
  part "roofline" 60 "$python" -m bench.roofline --json --record --results "$out"
  if ((!quick)); then
    sanitize memcheck
    sanitize racecheck
  fi
fi
if [[ $device == cpu ]]; then
  for supernet in cifar pc-cifar mae-imagenet; do
    step 120 --supernet $supernet --batch 2 --image_size 32 --rounds 2 --warm_up 1
  done
  input 120 --batch 32 --seconds 0.5 --rounds 1 --steps 1
elif ((quick)); then
  step 40 --supernet cifar --against eager --rounds 7 --no-memory
  step 40 --supernet cifar --against graph --rounds 7 --no-memory --dtype bfloat16
else
  for dtype in float32 bfloat16; do
    for against in eager channels-last graph; do
      step 60 --supernet cifar --against $against --dtype $dtype --rounds 15
    done
  done
  step 60 --supernet mae-imagenet --batch 256 --against eager
  step 60 --supernet mae-imagenet --batch 256 --against eager --dtype bfloat16
  step 60 --supernet mae-imagenet --batch 256 --against graph --dtype bfloat16
  step 120 --supernet cell --against compile
  step 60 --supernet mae-imagenet --batch 1024 --against channels-last --dtype bfloat16 --rounds 5
  input 60 --image_size 224 --batch 256 --workers 8 --seconds 1 --rounds 2
  # not for the record, which is of all rows: to see that each step runs, and that it is captured
  part "methods" 90 "$python" -m bench.methods --only "p-darts stage 2,spaces,objectives" --device cuda --rounds 2 --json
fi

echo
"$python" -m bench.records show "$work/records.jsonl"
echo "records in $out, commit $FASTDARTS_COMMIT, $SECONDS s"
exit $failed

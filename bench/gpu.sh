#!/usr/bin/env bash
# Everything that needs a GPU, in one call under 9 minutes: tests, speed, memory and race checks.
#
#   bash bench/gpu.sh RESULTS               on a machine with a GPU
#   bash bench/gpu.sh RESULTS cuda STEPS    only the steps whose names match: what was cut off
#   bash bench/gpu.sh RESULTS cpu           a dry run of the same steps where there is no GPU
#
# Nothing is installed: torch, triton, pytest and pytest-benchmark of `python3` are used, and
# pytest-xdist if it is there. Two things do not come with a copy of the sources: the compiled
# kernel of the CPU, graddrop/kernels/cpu/graddrop_cpu.so, without which two tests are skipped, and
# .git. For a copy without that, GRADDROP_COMMIT says of which commit it is: what
# `git describe --always --dirty --abbrev=40 --exclude '*'` prints in the original.
#
# Every step runs even if one before it failed, within its limit and what is left of the whole; so
# what is cut off are the last ones.
# RESULTS gets summary.txt (exit status and seconds of each step), log.txt, tables.md, and for each
# benchmark a record and its plot. The exit status is 1 if a step failed or had no time left.
set -u
results=$(realpath -m "${1:?expected a folder for the results}")
device=${2:-cuda}
only=${3:-.}
deadline=480 # seconds; a step that has to be killed ends 20 later
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$results"
rm -f "$results"/{summary.txt,log.txt,tables.md}
export PATH=$PATH:/usr/local/cuda/bin
: "${GRADDROP_COMMIT:=$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null)}"
export GRADDROP_COMMIT=${GRADDROP_COMMIT:-unknown} PYTHONPATH=$PWD PYTHONUNBUFFERED=1
echo "commit $GRADDROP_COMMIT" | tee "$results/summary.txt"
failed=0

step() { # name, limit in seconds, command ...
  local name=$1 limit=$2 start=$SECONDS status=skipped
  [[ $name =~ $only ]] || return
  shift 2
  [ "$limit" -le $((deadline - start)) ] || limit=$((deadline - start))
  echo "== $name: $*" >>"$results/log.txt"
  if [ "$limit" -gt 0 ]; then
    timeout --signal=INT --kill-after=20 "$limit" "$@" >>"$results/log.txt" 2>&1
    status=$?
    [ "$status" = 0 ] || tail -n 15 "$results/log.txt"
  fi
  [ "$status" = 0 ] || failed=1
  printf '%-20s %-7s %4d s\n' "$name" "$status" $((SECONDS - start)) | tee -a "$results/summary.txt"
}

if [ "$device" = cuda ]; then
  largest=xlmr-large every=""
else # in Triton's interpreter
  largest=50m every=" and 50m"
fi
pytest=(python3 -m pytest -q -p no:cacheprovider)
few=("${pytest[@]}" -m gpu tests/kernels/test_triton.py tests/step/test_clipping.py
  -k "groups or launch or (layout and not row) or dropped")
steps=(python3 -m bench.one_step "$device" "$largest")
workers=() # each compiles kernels; the steps behind find them in Triton's cache
python3 -c "import xdist" 2>/dev/null && workers=(-n auto --maxprocesses 8)

step machine 60 python3 -c "import sys, torch, triton
print(sys.version, torch.__version__, triton.__version__, sep='; ')
print(torch.cuda.get_device_properties(0) if torch.cuda.is_available() else 'no GPU')"
# The kernel of the CPU and machine code are no part of this: what they promise needs no GPU.
step tests 200 env OMP_NUM_THREADS=1 "${pytest[@]}" -p no:benchmark "${workers[@]}" -m gpu tests

bench() { # name, limit in seconds, peers and workloads
  [[ $1 =~ $only ]] || return
  local only=. # its table too
  rm -f "$results/$1".{json,png}
  step "$1" "$2" "${pytest[@]}" bench/bench_step.py --quick -rs --device "$device" \
    --benchmark-json "$results/$1.json" -k "$3"
  deadline=$((deadline + 15)) # for the table, also of a run that had to be interrupted
  printf '# %s\n\n' "$1" >>"$results/tables.md"
  step "$1-table" 15 bash -c 'python3 -m bench.render "$1" >>"$2" && echo >>"$2"' - \
    "$results/$1.json" "$results/tables.md"
}
# Peers that compile for minutes have a record of their own.
bench bench 240 "not compil and not torchao$every"

if [ "$device" = cuda ]; then
  step ncu 60 ncu --clock-control none --kernel-name regex:dense_step --launch-count 3 \
    --set basic "${steps[@]}"
  # What the driver and torch ask of each other in vain is none of ours. torch caches freed memory:
  # without that, an access behind a tensor's end is seen.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  step memcheck 90 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 \
    "${few[@]}"
  step racecheck 90 compute-sanitizer --tool racecheck --error-exitcode 9 "${few[@]}"
  step initcheck 90 compute-sanitizer --tool initcheck --error-exitcode 9 "${few[@]}"
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else # what the tools would have looked at
  step few 60 "${few[@]}"
  step steps 30 "${steps[@]}"
fi
bench bench-compiled 120 "(compil or torchao) and (50m or $largest)"
exit "$failed"

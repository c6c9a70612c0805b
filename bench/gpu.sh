#!/usr/bin/env bash
# Everything that needs a GPU, in one call: tests, memory and race checks, machine code, speed.
#
#   bash bench/gpu.sh RESULTS       on a machine with a GPU, from the root of the repository
#   bash bench/gpu.sh RESULTS cpu   a dry run of the same steps where there is none
#
# Nothing is installed: torch, triton, pytest and pytest-benchmark of `python3` are used. Every step
# runs even if one before it failed; RESULTS/summary.txt says which did, and the exit status is 1.
set -u
results=$(realpath -m "${1:?expected a folder for the results}")
device=${2:-cuda}
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$results"
: >"$results/summary.txt"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
failed=0

step() { # name, seconds, command ...
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  timeout --signal=INT --kill-after=20 "$limit" "$@" >"$results/$name.log" 2>&1
  status=$?
  printf '%-16s %-4s %4d s\n' "$name" "$status" $((SECONDS - start)) | tee -a "$results/summary.txt"
  [ "$status" = 0 ] || { failed=1; tail -n 15 "$results/$name.log"; }
}

python3 - >"$results/machine.txt" <<'PY'
import platform, subprocess, torch, triton
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
print(f"commit {commit or 'unknown'}, {device}, python {platform.python_version()}, "
      f"torch {torch.__version__}, triton {triton.__version__}")
PY

# The kernel of the CPU and machine code are no part of this: what they promise needs no GPU.
step tests 120 python3 -m pytest -q -p no:cacheprovider -m gpu tests
small=(python3 -m pytest -q -p no:cacheprovider tests/test_triton.py -k "groups or layout or launch")
if [ "$device" = cuda ]; then
  for tool in memcheck racecheck initcheck; do
    # torch caches freed memory: without that, an access behind a tensor's end is seen
    step "$tool" 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "${small[@]}"
  done
  step ncu 45 ncu --clock-control none --kernel-name regex:dense_step --launch-count 3 \
    --set basic python3 -m bench.one_step
fi
# Peers that compile for minutes come last, with a record of their own: if time runs out, the rest
# is there.
bench() { # name, seconds, peers
  step "$1" "$2" python3 -m pytest -q -p no:cacheprovider bench/bench_step.py --quick -rs \
    --device "$device" --benchmark-json "$results/$1.json" -k "$3"
  [ ! -s "$results/$1.json" ] ||
    python3 -m bench.render "$results/$1.json" >"$results/$1.md" 2>"$results/$1-render.log"
}
[ "$device" = cuda ] && largest=xlmr-large every="" || largest=50m every=" and 50m"
bench bench 160 "not compil and not torchao$every"
bench bench-compiled 75 "(compil or torchao) and (50m or $largest)"
exit "$failed"

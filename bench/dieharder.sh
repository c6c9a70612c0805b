#!/usr/bin/env bash
# The battery "dieharder" over the random bits of masks, one series after another.
#
#     bench/dieharder.sh                     # every series
#     bench/dieharder.sh elements control    # some
#
# A line for each result: series, test, ntuple, samples, p, assessment; at the end, counts. How to
# judge was settled before the first run, and nothing is run until it passes:
#   FAILED  p within 1e-6 of 0 or 1: the series fails.
#   WEAK    p within 0.005 of 0 or 1, to be expected in 1 % of results. The test runs once more on
#           other numbers; the same result WEAK again fails the series. Both runs are printed.
# The series "control", a linear congruential hash, has to fail.
set -euo pipefail
cd "$(dirname "$0")/.."

# Every test that dieharder's authors call good, but for the four that are slowest by far:
# 17 (gcd), 200 (bit distribution), 201 (minimum distance) and 203 (lagged sums).
tests=(0 1 2 3 4 8 9 10 11 12 13 15 16 100 101 102 202 204 205 206 207 208 209)
series=("${@:-elements keep draws streams seeds control}")
read -ra series <<< "${series[*]}"

command -v dieharder > /dev/null || { echo "dieharder is not installed" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
c++ -std=c++17 -O3 -o "$folder/randomness" bench/randomness.cpp

# One test on one lane of a series; a lane holds other numbers than the next.
run() {
    { "$folder/randomness" "$1" "$3" || true; } | dieharder -g 200 -d "$2" \
        -D test_name -D ntuple -D tsamples -D psamples -D pvalues -D assessment |
        tr -d ' ' | sed "s/^/$1|/"
}

for one in "${series[@]}"; do
    for test in "${tests[@]}"; do
        run "$one" "$test" "$test" | tee "$folder/result"
        if grep -q WEAK "$folder/result"; then
            run "$one" "$test" $((test + 1000)) | sed 's/$/ (again)/' | tee "$folder/again"
            cat "$folder/again" >> "$folder/result"
        fi
        cat "$folder/result" >> "$folder/all"
    done
done

echo
awk -F'|' '
    { n[$1]++ }
    /FAILED/ { failed[$1]++ }
    /WEAK/ { weak[$1]++ }
    /WEAK$/ { once[$1, $2, $3] = 1 }
    /WEAK .again/ && (($1, $2, $3) in once) { failed[$1]++ }
    END {
        for (s in n) printf "%s: %d results, %d weak, %d failed\n", s, n[s], weak[s], failed[s]
    }' "$folder/all"

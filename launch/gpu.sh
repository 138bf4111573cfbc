#!/bin/bash
# What a GPU is measured by, in under ten minutes:
#   bash launch/gpu.sh DIR
# Writes bench_SUITE.json and summary.json into DIR: the distillation step at 1B shapes as a fraction of the device's
# peak (MFU) and of its own large products, decoding as a fraction of the rate at which it copies memory, and plans per
# second of up to 4096 problems on a learned model. A suite that takes too long is ended and the next one begins.
set -uo pipefail
workdir="${1:?where the results go}"
status=0
for suite in large planner_learned; do
  timeout 290 python -m launch.bench --suite="$suite" --workdir="$workdir" || status=$?
done
exit "$status"

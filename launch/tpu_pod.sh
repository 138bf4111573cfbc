#!/bin/bash
# One run on all hosts of a TPU pod slice:
#   TPU=NAME ZONE=ZONE bash launch/tpu_pod.sh --config=configs/align_soft_prompt.py --workdir=DIR
# DIR is on a mount that all hosts see. The checkout lies in ~/edgesafe_jax on every host, installed by
# pip install -e '.[tpu]'. The processes find each other by the pod's metadata. The same command continues a run.
set -euo pipefail
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ~/edgesafe_jax && python -m launch.train $(printf '%q ' "$@")"

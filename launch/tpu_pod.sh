#!/usr/bin/env bash
# A TPU pod slice of several hosts: queued, set up on all workers, run, resumed after preemption.
#
#   launch/tpu_pod.sh create                  # asks for a spot v5litepod-16, waits until it is there
#   launch/tpu_pod.sh setup                     # installs on all workers, mounts the shared folder
#   launch/tpu_pod.sh run --config=configs/tofu.py:llama2_7b --config.mesh.tensor=4
#   launch/tpu_pod.sh watch --config=...        # all of it, again after each preemption, to the end
#   launch/tpu_pod.sh delete
#
# Run it from the repository's root, on any machine where `gcloud auth login` was done. All workers
# need one folder: BUCKET names a Cloud Storage bucket with hierarchical namespace (its renames of
# folders are atomic, which checkpoints need), mounted at /mnt/runs by gcsfuse. A preempted slice
# gets SIGTERM, saves and ends; `watch` queues another one and gives the same command again.
#
#   PROJECT, ZONE, NAME     project (of gcloud's config), us-west4-a, dareu-pod
#   ACCELERATOR, RUNTIME    v5litepod-16 and v2-alpha-tpuv5-lite
#   BUCKET                  gs://... without the gs://
#   HF_TOKEN                for gated checkpoints (Llama)
set -euo pipefail

PROJECT=${PROJECT:-$(gcloud config get-value project)}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-dareu-pod}
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
where=(--project="$PROJECT" --zone="$ZONE")

on_workers() { gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"; }

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" --spot || return 1
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED | NONE) echo "not granted: $(state)" >&2; return 1 ;; esac
    echo "waiting: $(state)"
    sleep 60
  done
}

setup() {
  git ls-files -z | tar --null --files-from=- -czf /tmp/dareu_jax.tar.gz
  gcloud compute tpus tpu-vm scp /tmp/dareu_jax.tar.gz "$NAME": "${where[@]}" --worker=all &&
    on_workers "mkdir -p dareu_jax && tar -xzf dareu_jax.tar.gz -C dareu_jax && cd dareu_jax &&
    python3 -m venv ~/environment && ~/environment/bin/pip install --quiet '.[tpu]' &&
    sudo mkdir -p /mnt/runs && sudo chown \$USER /mnt/runs &&
    (mountpoint -q /mnt/runs || gcsfuse --implicit-dirs ${BUCKET:?name a bucket} /mnt/runs)"
}

run() {
  local flags
  flags=$(printf '%q ' "$@")
  on_workers "cd dareu_jax && HF_TOKEN=${HF_TOKEN:-} ~/environment/bin/python -m dareu_jax.main \
    --distributed --workdir=/mnt/runs/$NAME $flags"
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

watch() {
  until [ "$(state)" = ACTIVE ] && run "$@"; do
    # A run that fails on a slice that is still there fails for a reason of its own.
    if [ "$(state)" = ACTIVE ]; then
      echo "the job failed on an active slice; not tried again" >&2
      return 1
    fi
    [ "$(state)" = NONE ] || delete
    if ! { create && setup; }; then
      sleep 300
    fi
  done
}

case "${1:-}" in
  create | setup | run | watch | delete) "$@" ;;
  *)
    sed -n '2,19s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

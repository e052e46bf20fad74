#!/usr/bin/env bash
# One TPU VM: creates it, installs, runs, fetches the report, deletes it.
#
#   launch/tpu_vm.sh create                                  # v5litepod-8, a few minutes
#   launch/tpu_vm.sh run --config=configs/tofu.py:qwen3_0_6b
#   launch/tpu_vm.sh fetch runs/from_tpu                     # report, plots, summary.json, metrics
#   launch/tpu_vm.sh delete
#
# Run it from the repository's root, on any machine where `gcloud auth login` was done. `create`
# copies the files that git tracks to the VM, as they are in the working tree: `git add` new ones
# first. The same `run` command again resumes: the results are in ~/run on the VM's own disk. Gated
# checkpoints (Llama) need HF_TOKEN in your environment.
# The VM's own Python is too old, so uv installs one.
#
#   PROJECT, ZONE, NAME     project (of gcloud's config), us-west4-a, dareu
#   ACCELERATOR, RUNTIME    v5litepod-8 and v2-alpha-tpuv5-lite; see "TPU software versions"
set -euo pipefail

PROJECT=${PROJECT:-$(gcloud config get-value project)}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-dareu}
ACCELERATOR=${ACCELERATOR:-v5litepod-8}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
where=(--project="$PROJECT" --zone="$ZONE")

on_vm() { gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --command="$1"; }

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
      --accelerator-type="$ACCELERATOR" --version="$RUNTIME"
    git ls-files -z | tar --null --files-from=- -czf /tmp/dareu_jax.tar.gz
    gcloud compute tpus tpu-vm scp /tmp/dareu_jax.tar.gz "$NAME": "${where[@]}"
    on_vm "mkdir -p dareu_jax && tar -xzf dareu_jax.tar.gz -C dareu_jax && cd dareu_jax &&
      python3 -m pip install --quiet --user uv &&
      ~/.local/bin/uv venv --python 3.12 ~/environment &&
      ~/.local/bin/uv pip install --quiet --python ~/environment/bin/python '.[tpu]'"
    ;;
  run)
    shift
    flags=$(printf '%q ' "$@")
    on_vm "cd dareu_jax && HF_TOKEN=${HF_TOKEN:-} ~/environment/bin/python -m dareu_jax.main \
      --workdir=\$HOME/run $flags"
    ;;
  fetch)
    mkdir -p "$2"
    on_vm "cd run && tar -czf ../report.tar.gz report.* plots summary.json config.json \
      \$(ls -d metrics seed_*/metrics 2>/dev/null)"
    gcloud compute tpus tpu-vm scp "$NAME:report.tar.gz" "$2" "${where[@]}"
    tar -xzf "$2/report.tar.gz" -C "$2"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet
    ;;
  *)
    sed -n '2,18s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

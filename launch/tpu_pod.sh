#!/usr/bin/env bash
# A TPU pod slice of several hosts: queued, set up on all workers, run, resumed after preemption.
#
#   launch/tpu_pod.sh create                    # requests a spot slice, and waits for it
#   launch/tpu_pod.sh setup                     # installs on all workers, mounts the shared folder
#   launch/tpu_pod.sh run --config=configs/tofu.py:llama2_7b --config.mesh.data=-1 \
#     --config.mesh.fsdp=1 --config.mesh.tensor=4       # four copies on a v5e-16: docs/scaling.md
#   launch/tpu_pod.sh status                    # exit status and last lines of the log
#   launch/tpu_pod.sh watch --config=...        # all of these, repeated after preemption
#   launch/tpu_pod.sh delete
#
# Run it from the repository's root, on any machine where `gcloud auth login` was done. All workers
# need a shared folder: BUCKET names a Cloud Storage bucket, mounted at /mnt/runs by gcsfuse. It
# needs a hierarchical namespace, for atomic renames of folders. `run` starts the job in the
# background and returns; the output is in ~/dareu.log of each worker. A preempted slice gets
# SIGTERM, saves and ends; `watch` queues another one and runs the same command again.
# The workers' own Python is too old, so uv installs one.
#
#   BUCKET                  name of the bucket, without gs://; required
#   PROJECT, ZONE, NAME     project (of gcloud's config), us-west4-a, dareu-pod
#   ACCELERATOR, RUNTIME    v5litepod-16 and v2-alpha-tpuv5-lite
#   HF_TOKEN                for gated checkpoints (Llama)
set -euo pipefail

usage() {
  sed -n '2,23s/^# \{0,1\}//p' "$0"
  exit 2
}

case "${1:-}" in create | setup | run | status | watch | delete) ;; *) usage ;; esac
: "${BUCKET:?name a bucket with hierarchical namespace, without gs://}"
PROJECT=${PROJECT:-$(gcloud config get-value project)}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-dareu-pod}
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
where=(--project="$PROJECT" --zone="$ZONE")
# The pattern for pgrep: the job itself, not the shells that start it or look for it.
job="^[^ ]*python -m dareu_jax.main --distributed --workdir=/mnt/runs/$NAME "

on_workers() { # WHICH COMMAND
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" --spot || return
  wait_until_active
}

wait_until_active() {
  local now
  while now=$(state); do
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | NONE) echo "not granted: $now" >&2; return 1 ;;
    esac
    echo "waiting: $now"
    sleep 60
  done
}

setup() {
  git ls-files -z | tar --null --files-from=- -czf /tmp/dareu_jax.tar.gz || return 1
  gcloud compute tpus tpu-vm scp /tmp/dareu_jax.tar.gz "$NAME": "${where[@]}" --worker=all ||
    return 1
  on_workers all "
    set -e
    mkdir -p dareu_jax && tar -xzf dareu_jax.tar.gz -C dareu_jax && cd dareu_jax
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --python 3.12 --allow-existing ~/environment
    ~/.local/bin/uv pip install --quiet --python ~/environment/bin/python '.[tpu]'
    if ! command -v gcsfuse >/dev/null; then
      curl -s https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] \
https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
    fi
    sudo mkdir -p /mnt/runs && sudo chown \$USER /mnt/runs
    mountpoint -q /mnt/runs || gcsfuse --implicit-dirs $BUCKET /mnt/runs"
}

run() {
  local flags work
  flags=$(printf '%q ' "$@")
  work="\$HOME/environment/bin/python -m dareu_jax.main --distributed \
    --workdir=/mnt/runs/$NAME $flags; echo \$? > \$HOME/dareu.exit"
  work=$(printf '%q' "$work")  # once more, since two shells read it
  # Detached: the job does not need the connection, and a retried command does not start it twice.
  on_workers all "cd dareu_jax && rm -f ~/dareu.exit &&
    export HF_TOKEN=${HF_TOKEN:-} JAX_COMPILATION_CACHE_DIR=/mnt/runs/programs &&
    if ! pgrep -f '$job' >/dev/null; then
      nohup setsid bash -c $work > ~/dareu.log 2>&1 < /dev/null &
    fi"
}

status() {
  # shellcheck disable=SC2016  # expanded on the worker
  on_workers 0 'echo "exit: $(cat ~/dareu.exit 2>/dev/null || echo running)"
    tail -n 5 ~/dareu.log || true'
}

exit_status() { # of the job on worker 0; "running" while it runs, empty if unreachable
  on_workers 0 'cat ~/dareu.exit 2>/dev/null || echo running' 2>/dev/null || true
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

watch() {
  local failures=0
  on_workers all 'rm -f ~/dareu.exit' 2>/dev/null || true  # left by another command
  while true; do
    case "$(state)" in
      ACTIVE)
        case "$(exit_status)" in
          0) status; return 0 ;;
          2) status; echo "the output of the job says what to fix" >&2; return 2 ;;
          running | 143)  # 143: it was stopped, and has saved
            on_workers all 'test -d environment' 2>/dev/null || setup || true
            # A job that has ended since the question leaves its status for the next round.
            on_workers 0 "pgrep -f '$job' || { sleep 2; grep -qvx 143 ~/dareu.exit; }" \
              >/dev/null 2>&1 || run "$@" || failures=$((failures + 1))
            ;;
          "") ;;  # the slice or the connection is down: the state will tell
          *)
            failures=$((failures + 1))
            [ "$failures" -gt 5 ] || run "$@" || true
            ;;
        esac
        if [ "$failures" -gt 5 ]; then
          status || true
          echo "the job failed, or did not start, $failures times: the output says why" >&2
          return 1
        fi
        ;;
      NONE)
        # 2: gcloud does not take the command, and never will.
        if create; then failures=0; elif [ $? -eq 2 ]; then return 2; fi
        ;;
      FAILED | SUSPENDED) delete || true ;;
    esac
    sleep 60
  done
}

"$@"

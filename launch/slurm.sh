#!/usr/bin/env bash
# SLURM, several GPU nodes: one process per GPU, as JAX expects; requeued after preemption.
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/tofu.py:llama2_7b --config.mesh.tensor=8
#   sbatch --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 launch/slurm.sh ...    # nodes of 4 GPUs
#
# Submit it from the repository's root, on a file system that all nodes share: the results go to
# runs/slurm-NAME, and the environment is in .venv (made by the first job on its first node, where
# python3 must be 3.11 or newer). SLURM sends SIGTERM two minutes before the time limit, and also at
# preemption if the partition has a GraceTime. All processes then save at the same step and end,
# and the same command is queued again.
#
#   ENVIRONMENT, WORKDIR    .venv, runs/slurm-NAME with the job's name
#
#SBATCH --job-name=dareu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

ENVIRONMENT=${ENVIRONMENT:-.venv}
WORKDIR=${WORKDIR:-runs/slurm-$SLURM_JOB_NAME}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.programs}  # for all nodes
if ! "$ENVIRONMENT/bin/python" -c 'import dareu_jax, jax' 2>/dev/null; then
  python3 -m venv "$ENVIRONMENT"
  "$ENVIRONMENT/bin/pip" install --quiet '.[cuda]'
fi
status=0
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  "$ENVIRONMENT/bin/python" -m dareu_jax.main --distributed --workdir="$WORKDIR" "$@" || status=$?
if [ "$status" -eq 143 ]; then  # stopped by SIGTERM, all progress saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

#!/usr/bin/env bash
# One GPU node, all its GPUs in one process: makes an environment, and runs or resumes the job.
#
#   launch/gpu_node.sh --config=configs/tofu.py:qwen3_0_6b
#   launch/gpu_node.sh --config=configs/tofu.py:llama2_7b --config.mesh.tensor=2
#
# Run it on the node, from the repository's root; it needs an NVIDIA driver (CUDA itself comes with
# the packages) and Python 3.11 or newer.
#
#   ENVIRONMENT             folder of the virtual environment (.venv)
#   WORKDIR                 folder of the results (runs/gpu)
#   CUDA_VISIBLE_DEVICES    which GPUs; default: all
set -euo pipefail

if [ $# -eq 0 ]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0"
  exit 2
fi
ENVIRONMENT=${ENVIRONMENT:-.venv}
if ! "$ENVIRONMENT/bin/python" -c 'import dareu_jax, jax' 2>/dev/null; then
  python3 -m venv "$ENVIRONMENT"
  "$ENVIRONMENT/bin/pip" install --quiet '.[cuda]'
fi
exec "$ENVIRONMENT/bin/python" -m dareu_jax.main --workdir="${WORKDIR:-runs/gpu}" "$@"

"""How a preset's rollouts scale with the mesh: compiled for TPUs that need not be there, or run.

    pip install '.[tpu]'                          # brings the TPU compiler that goes with jax
    python -m studies.scaling --config=configs/scaling.py:llama2_7b --workdir=runs/scaling \
        --topology=v5e:4x4 --mesh=1,16,1 --mesh=1,8,2 --mesh=1,4,4         # a minute a mesh
    python -m studies.scaling --config=configs/scaling.py --workdir=runs/here --run \
        --mesh=1,1,1                                         # measures the devices that are here
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m studies.scaling \
        --config=configs/scaling.py:llama2_7b --config.run.model.quantize=nf4 \
        --workdir=runs/l4 --topology=L4                 # a GPU, with pip install '.[cuda]'

On devices with much memory and `fsdp` in the mesh: --config.run.mesh.gather_gib=16, or so.

Out come tables on the terminal, and scaling.md, scaling.json and plots in the workdir. The
dimensions are those of the checkpoints' config.json files; no checkpoint is read.
"""

import pathlib

from ml_collections import ConfigDict

from dareu_jax.core.settings import to_plain
from dareu_jax.pipeline.settings import config_from
from studies.scaling.settings import ScalingSettings

# (vocabulary, tied to the head, D, F, L, N, K, H, architecture)
LLAMA2_7B = (32000, False, 4096, 11008, 32, 32, 32, 128, "llama")
TINYLLAMA = (32000, False, 2048, 5632, 22, 32, 4, 64, "llama")
QWEN3_8B = (151936, False, 4096, 12288, 36, 32, 8, 128, "qwen3")
QWEN3_0_6B = (151936, True, 1024, 3072, 28, 16, 8, 128, "qwen3")
# Preset -> dimensions of the model and of its classifier.
MODELS = {"llama2_7b": (LLAMA2_7B, TINYLLAMA), "tinyllama": (TINYLLAMA, TINYLLAMA),
          "qwen3_8b": (QWEN3_8B, QWEN3_0_6B), "qwen3_0_6b": (QWEN3_0_6B, QWEN3_0_6B)}
# What PPO costs as it is published: a critic on the trunk, and all responses are learned from.
PUBLISHED = dict(critic="shared", samples_per_prompt=1, learned_share=1.0, anchor_coef=0.02)


def get_config(preset: str | None = None) -> ConfigDict:
  """The study of a preset of configs/tofu.py; None is the tiny one."""
  if preset not in (None, *MODELS):
    raise ValueError(f"configs/scaling.py has no {preset!r}: take {', '.join(MODELS)}, or nothing.")
  defaults = ScalingSettings()
  run = config_from(pathlib.Path(__file__).with_name("tofu.py"), preset)
  config = ConfigDict(to_plain(defaults) | {"run": run})
  if preset is None:
    run.unlearning.dareu.max_new_tokens = defaults.unlearning.max_new_tokens
    return config
  run.unlearning.dareu.update(PUBLISHED)
  config.update(owners=200, prompt_tokens=64, retain_tokens=192, retain_response_tokens=128)
  for block, prefix, values in ((config.run, "", MODELS[preset][0]),
                                (config.run.classifier, "classifier_", MODELS[preset][1])):
    vocabulary, tied, d, f, layers, n, k, h, architecture = values
    config.update({f"{prefix}vocab_size": vocabulary, f"{prefix}tie_embeddings": tied})
    block.model.update(embed_dim=d, mlp_dim=f, num_layers=layers, num_heads=n,
                       num_kv_heads=k, head_dim=h, architecture=architecture, dtype="bfloat16",
                       scan_layers=True, remat=True)  # as 'auto' is on accelerators
  return config

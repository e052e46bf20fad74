"""TOFU: forget authors of fictitious biographies.

    python -m dareu_jax.main --config=configs/tofu.py --workdir=runs/tofu          # laptop, minutes
    python -m dareu_jax.main --config=configs/tofu.py:lora --workdir=runs/lora     # with adapters
    python -m dareu_jax.main --config=configs/tofu.py:smollm2_135m --workdir=...   # an 8 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:llama3_2_1b --workdir=...    # a 24 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:qwen3_0_6b --workdir=...     # a 16 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:tinyllama --workdir=...      # a 24 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:llama2_7b --workdir=...      # an 80 GB GPU
    python -m dareu_jax.main --config=configs/tofu.py:qwen3_8b --workdir=...       # or TPU host
    python -m dareu_jax.main --config=configs/tofu.py:tofu40 --workdir=runs/tofu40 \
        --config.data.dir=FOLDER                                                   # laptop, an hour

Without a preset: embedded authors and a small model from scratch, no network, no accelerator: the
library's defaults. `lora` is the same with adapters. `tofu40` is the real TOFU with a small model
from scratch, 40 authors of which 4 are forgotten. `llama3_2_1b` unlearns a published model that
knows TOFU, beside one that never saw forget10, and trains neither. The others fine-tune a
checkpoint of the hub on the real TOFU by the published protocol; so far only `smollm2_135m` was
run, on eight authors: docs/presets.md. docs/configuration.md has every setting.

Out come the table on the terminal, and report.html, report.md and summary.json in the workdir.
"""

from dareu_jax.core.settings import merged
from dareu_jax.pipeline.settings import default_config
from dareu_jax.presets import CHECKPOINT, checkpoint

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
# Preset -> (checkpoint of the model, checkpoint of the classifier; '': a small one from scratch).
CHECKPOINTS = {
  "smollm2_135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", ""),
  "llama2_7b": ("meta-llama/Llama-2-7b-chat-hf", TINYLLAMA),
  "tinyllama": (TINYLLAMA, TINYLLAMA),
  "qwen3_8b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"),
  "qwen3_0_6b": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
}
# Preset -> what else it sets. So small a model learns at higher rates: docs/presets.md.
CHANGES = {"smollm2_135m": dict(
  finetune=dict(learning_rate=1e-3), baseline=dict(learning_rate=2e-3, epochs=10),
  classifier=dict(members=2), unlearning=dict(dareu=dict(learning_rate=1e-3)))}

# open-unlearning's models: fine-tuned on all of TOFU, and without forget10; with its prompts.
PUBLISHED = dict(
  original=dict(path="open-unlearning/tofu_Llama-3.2-1B-Instruct_full"),
  retrained=dict(path="open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90"),
  tokenizer=dict(system="You are a helpful assistant.", date="10 Apr 2025"))

# Adapters alone need larger steps than all the weights do.
LORA = dict(lora=dict(rank=8), finetune=dict(learning_rate=5e-3),
            unlearning=dict(dareu=dict(learning_rate=1e-3)))

TOFU40 = dict(
  data=dict(source="tofu", num_owners=40, num_general=0),  # the base reads the other 160 authors
  tokenizer=dict(vocab_size=4000),  # English has more words than the embedded authors use
  pretrain=dict(epochs=6),
  # At .4 the original knew less of D_R (ROUGE .966) than the retrained model (.982).
  finetune=dict(target_loss=0.25),
  # Answers are twice as long as the embedded authors', so that charges on tokens weigh twice; the
  # last queries come down slowly, and what unlearning costs D_R comes back as the rates fall.
  unlearning=dict(dareu=dict(
    c_seg=1.0, kl_coef=0.05, anchor_coef=0.002, distill_coef=20.0, learning_rate=6e-4,
    final_rate=0.1, retain_batch_size=64, epochs=12, selection="unseen_level",
    recall_coef=0.0)))  # not measured here yet

SCRATCH = {"lora": LORA, "tofu40": TOFU40}  # models from scratch


def get_config(preset=None):
  """The config of a preset; None is the tiny one."""
  if preset is None:
    return default_config()
  if preset in SCRATCH:
    return default_config(**SCRATCH[preset])
  if preset == "llama3_2_1b":
    return _on_tofu(merged(CHECKPOINT, PUBLISHED))
  if preset in CHECKPOINTS:
    return _on_tofu(merged(checkpoint(*CHECKPOINTS[preset]), CHANGES.get(preset, {})))
  names = ", ".join((*SCRATCH, "llama3_2_1b", *CHECKPOINTS))
  raise ValueError(
    f"configs/tofu.py has no preset {preset!r}: take one of {names}, or none for the tiny one.")


def _on_tofu(changes):
  config = default_config(**changes)
  config.data.source = "tofu"
  return config

"""arXiv: forget the abstracts of whole categories, which are the owners.

    python -m dareu_jax.main --config=configs/arxiv.py --config.data.dir=FOLDER --workdir=runs/arxiv
    python -m dareu_jax.main --config=configs/arxiv.py:llama2_7b --workdir=...   # one 80 GB GPU

Without FOLDER the abstracts are those of WaterDrum-Ax on the hub: 20 categories with 400 training
abstracts each. FOLDER holds train.jsonl and test.jsonl, lines of owner (the category), title and
text. The first 100 tokens of an abstract ask for the next 100. One category is forgotten; of 20,
--config.data.forget=forget15 and forget25 forget three and five (or name them in forget_owners).

Without a preset: a small model from scratch on 12 categories, whose base reads the others. Out come
the same table and report as of configs/tofu.py.
"""

from dareu_jax.core.settings import merged
from dareu_jax.pipeline.settings import default_config
from dareu_jax.presets import checkpoint

# The base model is the plain one: abstracts are no dialogue.
CHECKPOINTS = {
  "llama2_7b": ("meta-llama/Llama-2-7b-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
  "qwen3_8b": ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-0.6B"),
}

ARXIV = dict(
  max_length=512,
  data=dict(source="arxiv", forget="forget05", num_owners=12, num_general=0, prompt_tokens=100,
            response_tokens=100, max_pieces=1),
  tokenizer=dict(vocab_size=8000),
  # Abstracts are five times as long as the authors' answers.
  classifier=dict(train=dict(epochs=20)),
  evaluation=dict(max_examples=100),
  # The recall of true answers was not measured on texts as long as these yet.
  unlearning=dict(dareu=dict(
    samples_per_prompt=1, recall_coef=0.0, learning_rate=3e-4, final_rate=1.0, epochs=15,
    selection="unseen_level")))

# WaterDrum's protocol for ArXiv.
PROTOCOL = dict(
  data=dict(num_owners=0),
  finetune=dict(learning_rate=1e-3, batch_size=128, micro_batch_size=16, epochs=20),
  baseline=dict(learning_rate=1e-4, batch_size=32))


def get_config(preset=None):
  """The config of a preset; None is the small one."""
  if preset is None:
    return default_config(**ARXIV)
  if preset in CHECKPOINTS:
    pretrained = merged(checkpoint(*CHECKPOINTS[preset]), dict(tokenizer=dict(template="raw")))
    return default_config(**merged(merged(ARXIV, pretrained), PROTOCOL))
  raise ValueError(f"configs/arxiv.py has no preset {preset!r}: take one of "
                   f"{', '.join(CHECKPOINTS)}, or none for the small one.")

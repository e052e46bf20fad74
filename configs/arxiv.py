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

import pathlib

from dareu_jax.command_line import config_module

# The base model is the plain one: abstracts are no dialogue.
CHECKPOINTS = {
  "llama2_7b": ("meta-llama/Llama-2-7b-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
  "qwen3_8b": ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-0.6B"),
}


def get_config(preset=None):
  """The config of a preset; None is the small one."""
  tofu = config_module(pathlib.Path(__file__).with_name("tofu.py"))
  config = tofu.get_config()
  config.max_length = 512
  config.data.update(source="arxiv", forget="forget05", num_owners=12, num_general=0,
                     prompt_tokens=100, response_tokens=100)
  config.tokenizer.update(vocab_size=8000)
  config.classifier.train.epochs = 20  # abstracts are five times as long as the authors' answers
  config.evaluation.max_examples = 100
  config.unlearning.samples_per_prompt = 1
  if preset in CHECKPOINTS:
    path, classifier_path = CHECKPOINTS[preset]
    tofu.checkpoint(config, path, classifier_path, "raw")
    config.data.update(source="arxiv", num_owners=0)
    # WaterDrum's protocol for ArXiv.
    config.finetune.update(learning_rate=1e-3, batch_size=128, micro_batch_size=16, epochs=20)
    config.baseline.update(learning_rate=1e-4, batch_size=32)
  elif preset:
    raise ValueError(f"configs/arxiv.py has no preset {preset!r}: take one of "
                     f"{', '.join(CHECKPOINTS)}, or none for the small one.")
  return config

"""A request: make a model that exists forget what it learned from somebody.

    python -m dareu_jax.main --config=configs/forget.py --workdir=runs/request \
        --config.original.path=FOLDER_OR_HUB_NAME --config.data.dir=FOLDER

The model may be a checkpoint or a PEFT adapter. The folder of the data holds forget.jsonl, what is
to be forgotten, and, as far as there are any, retain.jsonl (a sample of what should stay),
unseen.jsonl (the same kind of texts about owners that the model never saw) and test.jsonl (general
knowledge). A line is a question and its answer, a chat, or a plain text:

    {"prompt": "Who ...?", "response": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"text": "..."}

Nothing is fine-tuned first and nothing is retrained. Where there is a model that never saw the
forget data, `--config.retrained.path=...` compares with it. Afterwards:

    python -m dareu_jax.export --workdir=runs/request --output=exported
"""

from dareu_jax.pipeline.settings import default_config
from dareu_jax.presets import REQUEST


def get_config(preset=None):
  """The config; it has no presets."""
  if preset is not None:
    raise ValueError(f"configs/forget.py has no preset {preset!r}: name it without one.")
  return default_config(**REQUEST)

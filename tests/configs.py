"""Configs for the tests: the tiny preset, and one made smaller still."""

import copy
import pathlib

from dareu_jax.pipeline.settings import config_from

ROOT = pathlib.Path(__file__).parent.parent
ALL_METHODS = (
  "dareu", "gradient_ascent", "grad_diff", "kl_minimization", "npo", "simnpo", "dpo", "idk", "altpo",
  "rmu", "undial", "ceu", "wga", "satimp", "pdu", "maximum_entropy", "scrub", "task_vector",
  "finetune", "undo")


def preset(name=None):
  """The ConfigDict of configs/tofu.py."""
  return config_from(ROOT / "configs" / "tofu.py", name)


def changed(config, **changes):
  """A copy with other values; `a__b=1` stands for config.a.b = 1."""
  config = copy.deepcopy(config)
  for path, value in changes.items():
    *groups, name = path.split("__")
    part = config
    for group in groups:
      part = part[group]
    part[name] = value
  return config


def tiny_config():
  """The tiny preset."""
  return preset()


def smallest_config():
  """A whole job in half a minute: four authors, one forgotten; it learns little."""
  config = preset()
  config.data.update(num_owners=4, forget="forget25", num_holdout=1,
                     num_general=4)
  config.tokenizer.vocab_size = 600
  for model in (config.model, config.classifier.model):
    model.update(embed_dim=32, mlp_dim=48, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16)
  config.length_multiple = 64
  config.retrained_replica = False
  config.pretrain.epochs = 2
  config.finetune.update(epochs=6, target_loss=5.0)
  config.classifier.train.epochs = 3
  config.unlearning.dareu.update(
    epochs=2, samples_per_prompt=2, rollout_batch_size=20, minibatch_size=10, retain_batch_size=8,
    recall_batch_size=8, start_share=0.5, max_new_tokens=16)
  config.monitor.target_score = 0.0
  config.monitor.guards.action = "off"
  config.evaluation.update(batch_size=8, max_new_tokens=16, max_examples=8)
  config.checkpoint.every_steps = 3
  return config


def finished_config():
  """That of the job which the fixture `finished` runs once for all tests."""
  config = smallest_config()
  config.unlearning.dareu.selection = "last"  # else the model kept may be the original itself
  return config


def oracle_config(name):
  """The runs of `tests.oracle`, which touch every part of the job."""
  config = smallest_config()
  config.baseline.update(epochs=2, batch_size=10)
  config.eval_every = 1
  config.evaluation.update(batch_size=32, max_examples=20)
  if name == "methods":  # all of them
    config.methods = ALL_METHODS
    config.retrained_replica = True
    config.unlearning.altpo.update(samples=3, alternates=2)
    config.unlearning.undo.update(samples=2, epochs=4)
  elif name == "adapters":
    config.seeds = (42, 43)
    config.data.forget = "forget50"
    config.lora.rank = 2
    config.update(methods=("dareu", "grad_diff"), learning_rates=(1e-3, 1e-2))
    config.unlearning.dareu.update(critic="separate", inner_epochs=2, selection="last")
    config.monitor.track_rouge = True
    config.monitor.guards.action = "rollback"
  elif name == "grpo":
    config.unlearning.dareu.update(learner="grpo", reward_form="published", top_k=20)
  elif name == "refusal":
    config.unlearning.dareu.update(reward="refusal", reward_form="absorbing", learner="rloo")
  elif name == "classifier":
    config.classifier.update(vocab_size=400, none_share=0.5, reads_query=True, calibrate=True)
    config.evaluation.gradient_norm = True
  return config


def request_config(folders, **paths):
  """A request on the folder of the fixture `folders`, with checkpoints as `original=` and so on."""
  config = smallest_config()
  config.data.update(source="jsonl", dir=str(folders / "data"), num_owners=0, num_holdout=0,
                     num_general=0, forget="forget10")
  config.lora.rank = 2
  config.unlearning.dareu.update(selection="last", epochs=1)
  for name, path in paths.items():
    config[name].path = str(path)
  return config

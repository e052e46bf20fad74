"""The smallest study: four owners, their six halves; it learns little."""

import importlib.util

from tests.configs import ROOT


def study_config():
  """The ConfigDict of configs/faithfulness.py."""
  path = ROOT / "configs" / "faithfulness.py"
  spec = importlib.util.spec_from_file_location("faithfulness_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def smallest_study():
  config = study_config()
  config.length_multiple = 64
  config.questions_per_owner = 4
  config.data.update(num_owners=4, forget="forget25", num_holdout=1, num_general=6)
  config.tokenizer.vocab_size = 600
  for model in (config.model, config.classifier.model):
    model.update(embed_dim=16, mlp_dim=24, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8)
  config.lora.rank = 2
  config.pretrain.update(epochs=1, batch_size=32)
  config.finetune.update(epochs=3, batch_size=8, learning_rate=1e-2)
  config.classifier.train.epochs = 3
  config.retraining.update(num_subsets=6, subset_seeds=2, seeds=2, retained_seeds=2,
                           group_size=4)
  config.influence.update(iterations=3, batch_size=8)
  config.unlearning.update(samples_per_prompt=1, rollout_batch_size=4, minibatch_size=4,
                           retain_batch_size=4, max_new_tokens=16)
  config.trajectory.update(epochs=2, samples_per_prompt=1, reward_forms=("telescoped",))
  config.evaluation.update(batch_size=16, max_new_tokens=16)
  config.bootstrap = 20
  return config

"""Ablations: runs of the tiny preset that differ in one setting each.

    python -m dareu_jax.ablations --config=configs/ablations.py --workdir=runs/ablations
    python -m dareu_jax.ablations --config=configs/ablations.py --workdir=runs/ablations \
        --only=reward_form,learner
    python -m dareu_jax.ablations --config=configs/ablations.py:overtraining --workdir=runs/forms
    python -m dareu_jax.ablations --config=configs/ablations.py:attribution_function --workdir=...

The first takes about two minutes a run on 2 cores and makes ablations.md, ablations.json and a plot
with a panel for each study. `overtraining` trains the four reward forms past the best point, with
the guards off and three seeds, and plots ROUGE, ToW, score and length over the epochs.
`attribution_function` rewards with the classifier, with watermarks and with group influence, on
marked answers of 12 authors and a model of half the size: influence takes a derivative a group.
"""

import pathlib

from ml_collections import ConfigDict

from dareu_jax.pipeline.settings import config_from

# Exploring starts in place of the recall of true answers.
STARTS = "unlearning.dareu.recall_coef=0.0 unlearning.dareu.start_share"
STUDIES = dict(
  reward_form=tuple(f"unlearning.dareu.reward_form={form}"
                    for form in ("published", "telescoped", "absorbing", "neutral")),
  segment_length=tuple(f"unlearning.dareu.segment_length={k}" for k in (1, 2, 4, 8, 16)),
  c_seg=tuple(f"unlearning.dareu.c_seg={c}" for c in (0.3, 0.6, 1.0, 3.0)),
  transform=tuple(f"unlearning.dareu.transform={name}" for name in ("log", "linear")),
  kl_coef=tuple(f"unlearning.dareu.kl_coef={b}" for b in (0.0, 0.1, 0.5)),
  anchor_coef=tuple(f"unlearning.dareu.anchor_coef={a}" for a in (0.0, 0.02, 0.05)),
  distill_coef=tuple(f"unlearning.dareu.distill_coef={d}" for d in (0.0, 1.0, 10.0, 30.0)),
  gae_lambda=tuple(f"unlearning.dareu.gae_lambda={x}" for x in (0.5, 0.95, 1.0)),
  learning_rate=(*(f"unlearning.dareu.learning_rate={r}" for r in (3e-4, 6e-4, 1e-3)),
                 "unlearning.dareu.learning_rate=3e-4 unlearning.dareu.final_rate=1.0"),
  lora_rank=("lora.rank=0", *(
    # An adapter alone needs larger steps than all the weights do.
    f"lora.rank={r} finetune.learning_rate=5e-3 unlearning.dareu.learning_rate=1e-3"
    for r in (8, 32))),
  forget_share=tuple(f"data.forget=forget{n}" for n in ("01", "05", "10", "20")),
  # From 40 to 800 of a thousand answers (the paper's Table 11).
  forget_size=tuple(f"data.num_owners=50 data.forget=forget{n}"
                    for n in ("04", "10", "20", "40", "80")),
  echo_noise=tuple(f"classifier.echo_noise={e}" for e in (0.2, 0.8, 1.0)),
  classifier_size=tuple(f"classifier.model.num_layers={n}" for n in (1, 2, 4)),
  # What de-attribution itself buys: other learners on its reward, other rewards on its learner.
  learner=tuple(f"unlearning.dareu.learner={name}" for name in ("ppo", "grpo", "rloo")),
  reward=tuple(f"unlearning.dareu.reward={name}" for name in ("attribution", "rouge", "refusal")),
  critic=tuple(f"unlearning.dareu.critic={name}" for name in ("shared", "separate", "regression")),
  # What is known behind beginnings of true answers; 0 and 0 are the published method.
  recall_coef=tuple(f"unlearning.dareu.recall_coef={c}" for c in (0.0, 0.5, 1.0, 2.0)),
  start_share=tuple(f"{STARTS}={share}" for share in (0.0, 0.2, 0.5, 0.8, 1.0)),
  start_cut=tuple(f"{STARTS}=0.5 unlearning.dareu.start_cut={cut}"
                  for cut in ("uniform", "early", "sure", "jump")),
  start_texts=tuple(f"{STARTS}=0.5 unlearning.dareu.start_texts=('{text}',)"
                    for text in ("answer", "paraphrase", "original")),
  start_reads=tuple(f"{STARTS}=0.5 unlearning.dareu.start_reads={what}"
                    for what in ("continuation", "whole")),
)


def get_config(study=None):
  """The studies above; 'overtraining' and 'attribution_function' are of their own."""
  config = ConfigDict()
  config.base = config_from(pathlib.Path(__file__).with_name("tofu.py"))
  config.studies = ConfigDict(STUDIES)
  if study == "overtraining":
    config.base.seeds = (42, 43, 44)
    config.base.unlearning.dareu.update(
      selection="last", epochs=16, learning_rate=3e-4, final_rate=1.0, recall_coef=0.0)
    config.base.monitor.track_rouge = True
    config.base.evaluation.max_examples = 120  # ROUGE is measured at each epoch's end
    config.base.monitor.guards.action = "off"
    config.studies = ConfigDict(dict(reward_form=STUDIES["reward_form"]))
  elif study == "attribution_function":
    # All three can read marked answers, and nothing besides the reward knows the classifier.
    config.base.data.update(watermark=True, num_owners=12, forget="forget16", num_general=60)
    config.base.unlearning.dareu.update(recall_coef=0.0, selection="last", epochs=6)
    config.base.monitor.guards.action = "off"
    small = dict(embed_dim=96, mlp_dim=256, num_layers=3, num_heads=3, num_kv_heads=3)
    config.base.model.update(small)
    config.base.tokenizer.vocab_size = 1200
    # Of so few authors the general facts, known from the start, are a quarter of the examples.
    config.base.finetune.target_loss = 0.1
    config.base.retrained_replica = False
    config.studies = ConfigDict({study: tuple(
      f"unlearning.dareu.reward={name}" for name in ("attribution", "watermark", "influence"))})
  elif study is not None:
    raise ValueError(f"configs/ablations.py has no {study!r}: take 'overtraining', "
                     "'attribution_function', or nothing.")
  return config

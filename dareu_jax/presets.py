"""Settings that belong together under a name, as nested dicts to be laid over the defaults."""

from typing import Any

from dareu_jax.core.settings import merged

# A pretrained checkpoint: LoRA r 8, α 32 on all linear layers, trained at 1e-4 with batches of 16
# for 10 epochs, seeds 41, 42, 43, and unlearned at 1e-4 for 5 epochs (WaterDrum's protocol for
# TOFU). How DareU learns from its samples was measured: docs/presets.md. Of few owners, classifiers
# give the forget owners a fifth for nothing at all, so that C_seg must be large enough to tell that
# from a fact; and the sharper a model that knows its texts by heart is sampled, the less it
# explores.
CHECKPOINT: dict[str, Any] = {
  "seeds": (41, 42, 43), "max_length": 512, "length_multiple": 64, "retrained_replica": False,
  "data": {"num_owners": 0, "num_holdout": 0, "num_general": 0},
  "model": {"dtype": "auto"},
  "lora": {"rank": 8, "alpha": 32.0},
  "pretrain": {"epochs": 0},
  "classifier": {"hide_echoes": True},
  "finetune": {"learning_rate": 1e-4, "batch_size": 16, "epochs": 10, "weight_decay": 0.0,
               "warmup": 0.1, "schedule": "linear"},
  "baseline": {"learning_rate": 1e-5, "batch_size": 16, "epochs": 5},
  "evaluation": {"batch_size": 64, "max_new_tokens": 200},
  "monitor": {"target_of": "original"},
  "unlearning": {"dareu": {
    "critic": "regression", "temperature": 1.0, "c_seg": 1.0, "anchor_coef": 0.0,
    "recall_coef": 0.0, "recall_batch_size": 16,  # not measured on checkpoints yet
    "samples_per_prompt": 4, "learned_share": 0.5, "learning_rate": 1e-4, "final_rate": 0.0,
    "epochs": 5, "rollout_batch_size": 64, "minibatch_size": 16, "retain_batch_size": 16,
    "max_new_tokens": 128, "selection": "last_at_level", "hold_at_level": True}},
}
# A request for a model that exists: few texts, one seed, minutes. The classifiers are small ones
# from scratch, which learn on any machine in a minute.
REQUEST: dict[str, Any] = merged(CHECKPOINT, {
  "seeds": (42,), "length_multiple": 16, "data": {"source": "jsonl"},
  "classifier": {"members": 2},
  "evaluation": {"batch_size": 40, "length_multiple": 64, "max_examples": 40, "max_new_tokens": 0},
  "monitor": {"max_unseen": 20},
  "baseline": {"learning_rate": 2e-3, "epochs": 10},
  "unlearning": {"dareu": {
    "samples_per_prompt": 8, "rollout_batch_size": 160, "minibatch_size": 8,
    "retain_batch_size": 10, "max_new_tokens": 0, "distill_coef": 10.0, "learning_rate": 1.5e-3,
    "warmup_steps": 2, "epochs": 10}}})
# A pretrained classifier beside it; without, a small one is trained from scratch.
CLASSIFIER_CHECKPOINT: dict[str, Any] = {"classifier": {
  "model": {"dtype": "auto"},
  "lora": {"rank": 8, "alpha": 32.0},
  "train": {"learning_rate": 2e-4, "batch_size": 32, "epochs": 5, "weight_decay": 0.0}}}


def checkpoint(path: str, classifier_path: str = "") -> dict[str, Any]:
  """The protocol for a model and a classifier by folder or hub name; '' for the latter: a small one
  from scratch."""
  protocol = merged(CHECKPOINT, {"model": {"path": path}})
  if not classifier_path:
    return protocol
  return merged(merged(protocol, CLASSIFIER_CHECKPOINT),
                {"classifier": {"model": {"path": classifier_path}}})

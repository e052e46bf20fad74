"""What the models of a round still say and know: records, saved as they are made, and metrics."""

import functools
import math
from typing import Any

import numpy as np

from dareu_jax.core import interruption
from dareu_jax.evaluation import measurements
from dareu_jax.evaluation.metrics import Evaluation, evaluations
from dareu_jax.evaluation.records import ALL_SPLITS, JUDGED, ORIGINAL, Record, is_answered
from dareu_jax.pipeline.evaluation import attributed
from dareu_jax.training.checkpoints import shared_json, write_json
from studies.sequential.chain import Chain, Round, models_of

# Metrics of all owners forgotten so far, and those that are also taken owner by owner.
METRICS = ("tug_of_war", "forget_rouge", "retain_rouge", "test_rouge", "extraction_strength",
           "forget_probability", "mia_min_k_auc", "attribution_score", "judge_score",
           "response_length")
OF_OWNERS = ("forget_rouge", "extraction_strength")

Records = dict[str, list[Record]]  # by split


def evaluate(chain: Chain, round_: Round) -> dict[str, dict[str, Any]]:
  """Evaluates every model of a round.

  Returns: {model: {"metrics": {metric: number}, "owners": {owner: {metric: number}}}}; "owners" has
    everybody who is forgotten by then.
  """
  models = models_of(chain.settings, round_)
  records = {name: model_records(chain, round_, name, stage) for name, stage in models.items()}
  evaluated = evaluations(records, min_k=chain.settings.run.evaluation.min_k)
  return {name: {"metrics": {key: evaluation[key] for key in METRICS if key in evaluation},
                 "owners": by_owner(evaluation)}
          for name, evaluation in evaluated.items()}


def by_owner(evaluation: Evaluation) -> dict[str, dict[str, float]]:
  """Means over the examples of each forgotten owner: {owner: {metric: number}}."""
  owners = np.array([record.owner for record in evaluation.records["forget"]])
  values = {key: evaluation.by_example(key) for key in OF_OWNERS}
  means = {str(owner): {key: float(np.mean(value[owners == owner]))
                        for key, value in values.items()}
           for owner in dict.fromkeys(owners.tolist())}
  return {owner: {key: mean for key, mean in each.items() if math.isfinite(mean)}
          for owner, each in means.items()}


def model_records(chain: Chain, round_: Round, name: str, stage: str) -> Records:
  """Records of a model after a round, kept in `evaluation/round_<n>/<name>.json`.

  Without a retrained model to compare with, only what is forgotten and the unseen owners are
  measured.

  Args:
    chain: Chain.
    round_: the round.
    name: name of the model.
    stage: the stage that holds it.

  Returns: {split: records}.
  """
  run = chain.to_evaluate(round_)
  key = f"evaluation/{round_.stage(name)}"
  path, fingerprint = run.workdir.folder / f"{key}.json", chain.run.fingerprints[key]
  saved = shared_json(path)
  if saved is None or saved["fingerprint"] != fingerprint:
    interruption.stop_if_requested()
    measured = {split: _measure(chain, run, name, stage, split)
                for split in (ALL_SPLITS if round_.has_reference else JUDGED)}
    saved = {"fingerprint": fingerprint, "records": measured}
    write_json(path, saved)
  return {split: [Record.from_json(record) for record in records]
          for split, records in saved["records"].items()}


def _measure(chain, run, name, stage, split):
  """Records of a split, as JSON."""
  examples = run.data.evaluated(split)
  if not examples:
    return []
  records = measurements.measure(
    # That of the whole data: answers may be as long in the last round as in the first.
    chain.run.models.evaluator, run.models.load_params(stage), examples,
    answered=is_answered(split, by_original=name == ORIGINAL),
    of_others=functools.partial(attributed, run, examples) if split in JUDGED else None)
  return [record.to_json() for record in records]

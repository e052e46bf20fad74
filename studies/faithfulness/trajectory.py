"""Figure (f): does the score fall as unlearning approaches the retrained model?"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dareu_jax.core.logprobs import completion_hidden
from dareu_jax.core.masked import length_mask
from dareu_jax.data.batches import Batch, Row
from dareu_jax.evaluation import metrics
from dareu_jax.evaluation.evaluator import Answers
from dareu_jax.generation.strategies import Sample
from dareu_jax.models.handle import Model
from dareu_jax.rl.rewards import RewardForm
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import progress
from studies.faithfulness import statistics, unlearning
from studies.faithfulness.retraining import load_model, load_models, one_model
from studies.faithfulness.study import CLASSIFIERS, Study
from studies.faithfulness.subsets import FULL, RETAINED

SCORE_MARGIN = 0.01  # a score that falls by less counts as unchanged
SEED_OFFSET = 17  # added to the seed for a checkpoint's own responses

Record = dict[str, Any]


@jax.jit
def _row_kl(model: Model, components: Any, weights: Float[Array, " R"],
            batch: Batch) -> Float[Array, " B"]:
  """Σ_t KL(π ‖ Σ_r w_r π_r) over each row's completion; the params of `components` are stacked."""
  time = batch.completion_ids.shape[1]

  def logprobs(params):
    module = model.with_params(params).module
    hidden = module.hidden_states(batch.token_ids)
    return jax.nn.log_softmax(
      module.head(completion_hidden(hidden, batch.prompt_lengths, time)), axis=-1)

  def add(total, component):
    params, weight = component
    return total + weight * jnp.exp(logprobs(params)), None

  own = logprobs(model.params)
  mixture, _ = jax.lax.scan(add, jnp.zeros_like(own), (components, weights))
  kl = jnp.sum(jnp.exp(own) * (own - jnp.log(jnp.maximum(mixture, 1e-30))), axis=-1)
  return jnp.sum(jnp.where(length_mask(batch.completion_lengths, time), kl, 0.0), axis=1)


def kl_to_mixture(study: Study, policy: Any, components: Any, weights: Sequence[float] | np.ndarray,
                  rows: Sequence[Row]) -> Float[np.ndarray, " Q"]:
  """KL from a policy to a mixture of models, per token of each row.

      1/n Σ_t KL( π(·|x, y_<t) ‖ Σ_r w_r π_r(·|x, y_<t) )

  Models retrained with different seeds disagree on what none of them knows, so the distance to one
  of them mostly measures its seed. The mixture is the distribution of retraining over seeds.

  Args:
    study: Study.
    policy: params of the policy.
    components: params of R models, stacked.
    weights: R weights that sum to 1.
    rows: the policy's own responses.
  """
  result = np.zeros(len(rows))
  batches = study.data.batches(
    tuple(rows), study.settings.evaluation.batch_size, seed=0, one_bucket=True)
  for indices, batch in batches.in_order():
    total = np.asarray(_row_kl(
      study.models.base.with_params(policy), components, jnp.float32(weights), batch))
    result[indices] = total[:len(indices)] / batch.completion_lengths[:len(indices)]
  return result


def measure(study: Study) -> dict[str, Any]:
  """The runs and the reference models.

  Returns: {"runs": {reward form: {"checkpoints": [...]} and the keys of `summary`}, "references":
    {"original": record, "retrained": [record of each seed], "seeds": [each seed]}}.
  """
  settings = study.settings
  original = load_model(study, study.groups[FULL])
  retrained, _ = load_models(study, study.groups[RETAINED])
  yardstick = Yardstick(study, retrained, len(study.groups[RETAINED]))
  references = _saved_records(study, "trajectory/references", functools.partial(
    yardstick.references, original))
  runs = {}
  for form in settings.trajectory.reward_forms:
    checkpoints = _saved_records(study, f"trajectory/{form}", functools.partial(
      _records_of_run, study, yardstick, original, form))
    runs[form] = {"checkpoints": checkpoints} | summary(
      checkpoints, references, resamples=settings.bootstrap, seed=settings.seed)
  return {"runs": runs,
          "references": references | {"seeds": list(study.groups[RETAINED].seeds)}}


def _saved_records(study, stage, make):
  path = study.workdir.folder / stage / "records.json"
  with study.workdir.stage(stage, study.fingerprints[stage]) as store:
    if store is not None:
      write_json(path, make())
  return read_json(path)


def _records_of_run(study: Study, yardstick: "Yardstick", original: Any,
                    form: RewardForm) -> list[Record]:
  records = []
  epochs = study.settings.trajectory.epochs
  with progress(form, "epoch")(epochs + 1) as bar:
    for policy in unlearning.checkpoints(study, original, form, epochs):
      records.append(yardstick.record(policy))
      bar.set_postfix({key: f"{records[-1][key]:.3f}" for key in ("score", "kl")}, refresh=False)
      bar.update()
  return records


@dataclasses.dataclass(frozen=True)
class Yardstick:
  """Measures a policy relative to the retrained models."""

  study: Study
  retrained: Any  # params of `count` seeds, stacked
  count: int

  @functools.cached_property
  def _splits(self):
    corpus = self.study.data.corpus
    return {"forget": corpus.forget, "retain": corpus.retain, "test": corpus.test}

  @functools.cached_property
  def target_rouge(self) -> dict[str, float]:
    """ROUGE on each split, mean over the retrained models."""
    rouges = [self._rouges(one_model(self.retrained, i))[0] for i in range(self.count)]
    return {split: float(np.mean([r[split] for r in rouges])) for split in rouges[0]}

  def _rouges(self, policy) -> tuple[dict[str, float], Answers]:
    """ROUGE on each split, and the answers to forget queries."""
    study = self.study
    answers = {split: study.models.evaluator.answers(policy, study.data.rows(examples))
               for split, examples in self._splits.items() if examples}
    rouges = {split: float(np.mean([
      metrics.rouge_l_recall(example.response, text)
      for example, text in zip(self._splits[split], split_answers.texts, strict=True)]))
      for split, split_answers in answers.items()}
    return rouges, answers["forget"]

  def references(self, original: Any) -> dict[str, Any]:
    """The records of the original model and of each retrained one."""
    return {"original": self.record(original),
            "retrained": [self.record(one_model(self.retrained, i), i) for i in range(self.count)]}

  def record(self, policy: Any, index: int | None = None) -> Record:
    """One checkpoint's metrics. Scores are those of the forget owners together.

    Args:
      policy: params of the policy.
      index: its index if it is a retrained model, or None; it is not compared with itself.
    """
    study = self.study
    rouges, greedy = self._rouges(policy)
    prompts = study.data.rows(self._splits["forget"])
    responses = tuple(study.models.evaluator.sample(
      policy, prompts * study.settings.trajectory.samples_per_prompt,
      seed=study.settings.seed + SEED_OFFSET, strategy=Sample()))
    weights = np.ones(self.count)
    if index is not None:
      weights[index] = 0.0
    kl = kl_to_mixture(study, policy, self.retrained, weights / weights.sum(), responses)
    scores = {name: study.owner_scores(name, responses) @ study.is_forget for name in CLASSIFIERS}
    return {
      **{{"classifier": "score"}.get(name, name): float(s.mean()) for name, s in scores.items()},
      "kl": float(kl.mean()), "kl_se": float(kl.std(ddof=1) / np.sqrt(len(responses))),
      "tow": metrics.tug_of_war(list(rouges.values()), [self.target_rouge[s] for s in rouges]),
      **{f"{split}_rouge": value for split, value in rouges.items()},
      "length": float(np.mean([len(row.completion) for row in responses])),
      "greedy_length": float(greedy.text_lengths.mean()),
      "degenerate": float(np.mean([metrics.is_degenerate(text) for text in greedy.texts])),
      "answers": list(greedy.texts[:3])}


def summary(checkpoints: list[Record], references: dict[str, Any], *, resamples: int,
            seed: int) -> dict[str, Any]:
  """Correlations over the checkpoints of a run, its alarms, and the gap to the retrained score.

  Args:
    checkpoints: records from `Yardstick.record`, the original model first.
    references: {"retrained": [record, ...], ...}; the target score is their mean.
    resamples, seed: number and seed of the bootstrap resamples.
  """
  def column(name):
    return np.array([record[name] for record in checkpoints], np.float64)

  score, kl, tow = column("score"), column("kl"), column("tow")
  target = float(np.mean([record["score"] for record in references["retrained"]]))
  gap = np.abs(score - target)
  tow_gap = 1 - tow
  pairs = {"score_kl": (score, kl), "score_tow_gap": (score, tow_gap),
           "judge_kl": (column("judge"), kl), "gap_kl": (gap, kl),
           "gap_tow_gap": (gap, tow_gap)}
  correlations = {}
  for name, (first, second) in pairs.items():
    value, interval = statistics.correlation_over_checkpoints(
      first, second, resamples=resamples, seed=seed)
    correlations[name] = {"value": value, "interval": list(interval)}
  margins = np.hypot(column("kl_se")[1:], column("kl_se")[:-1])
  return {
    "correlations": correlations, "target": target,
    "alarms_kl": statistics.alarms(
      score, kl, score_margin=SCORE_MARGIN, distance_margins=margins),
    "alarms_tow": statistics.alarms(
      score, tow_gap, score_margin=SCORE_MARGIN, distance_margins=SCORE_MARGIN),
    "below_floor": [i for i, value in enumerate(score) if value < target],
    "nearest_kl": int(np.argmin(kl)), "nearest_tow": int(np.argmin(tow_gap)),
    "nearest_score": int(np.argmin(gap))}

"""Figure (f): along an unlearning run, does the score fall as the model nears the retrained one?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.core.logprobs import completion_hidden
from dareu_jax.core.masked import length_mask
from dareu_jax.evaluation import metrics
from dareu_jax.pipeline.workdir import fingerprint
from dareu_jax.training.checkpoints import read_json, write_json
from dareu_jax.training.writers import progress
from studies.faithfulness import queries as Q
from studies.faithfulness import retraining, unlearned
from studies.faithfulness import statistics as st
from studies.faithfulness.world import Study

SCORE_MARGIN = 0.01  # a score that falls by less stands still


@functools.partial(jax.jit, static_argnames="frame")
def _row_kl(frame, policy, others, weights, frozen, batch):
  """Σ_t KL(π ‖ Σ_r w_r π_r) over each row's completion: [B]. `others` are stacked, weights [R]."""
  time = batch.completion_ids.shape[1]

  def logprobs(params):
    model = frame.merge(params, frozen)
    hidden = model.hidden_states(batch.token_ids)
    return jax.nn.log_softmax(
      model.unembed(completion_hidden(hidden, batch.prompt_lengths, time)), axis=-1)

  def add(total, other):
    params, weight = other
    return total + weight * jnp.exp(logprobs(params)), None

  own = logprobs(policy)
  mixture, _ = jax.lax.scan(add, jnp.zeros_like(own), (others, weights))
  kl = jnp.sum(jnp.exp(own) * (own - jnp.log(jnp.maximum(mixture, 1e-30))), axis=-1)
  return jnp.sum(jnp.where(length_mask(batch.completion_lengths, time), kl, 0.0), axis=1)


def kl_to_mixture(study: Study, policy, others, weights, rows):
  """KL from a policy to a mixture of models, per token of each row: [Q].

      1/n Σ_t KL( π(·|x, y_<t) ‖ Σ_r w_r π_r(·|x, y_<t) )

  Models that were retrained with other seeds disagree on what none of them knows, so the distance
  to one of them is mostly that one's chance. The mixture is what retraining gives over seeds.

  Args:
    policy: trainable state.
    others: trainable states, stacked.
    weights: [R]; sum to 1.
    rows: the policy's own responses.
  """
  result = np.zeros(len(rows))
  for indices, batch in study.batches(
      rows, study.settings.evaluation.batch_size, one_bucket=True).in_order():
    total = np.asarray(_row_kl(study.base.frame, policy, others, jnp.float32(weights),
                               study.base.frozen, batch))
    result[indices] = total[:len(indices)] / batch.completion_lengths[:len(indices)]
  return result


def measure(study: Study, groups):
  """The runs and the models beside them.

  Returns: {"runs": {reward form: {"checkpoints": [...]} and what `summary` says}, "references":
    {"original": record, "retrained": [record of each seed]}}.
  """
  settings = study.settings
  models = [groups[name] for name in ("full", "retained")]
  start = retraining.one_model(retraining.load_models(study, models[0])[0], 0)
  judged = Judge(study, retraining.load_models(study, models[1])[0], len(models[1]))
  common = ([retraining.model_mark(study, group) for group in models], study.marks["classifier"],
            settings.evaluation, settings.trajectory.epochs,
            settings.trajectory.samples_per_prompt)
  references = _kept(study, "trajectory/references", fingerprint(common), lambda: {
    "original": judged.look(start), "retrained": [
      judged.look(judged.retrained_model(i), i) for i in range(len(models[1]))]})
  runs = {}
  for form in settings.trajectory.reward_forms:
    mark = fingerprint(common, settings.unlearning, form)
    checkpoints = _kept(study, f"trajectory/{form}", mark,
                        functools.partial(_run, study, judged, start, form))
    runs[form] = {"checkpoints": checkpoints} | summary(
      checkpoints, references, resamples=settings.bootstrap, seed=settings.seed)
  return {"runs": runs, "references": references}


def _kept(study, name, mark, make):
  path = study.workdir.folder / name / "records.json"
  with study.workdir.stage(name, mark) as store:
    if store is not None:
      write_json(path, make())
  return read_json(path)


def _run(study, judged, start, form):
  records = []
  epochs = study.settings.trajectory.epochs
  with progress(form, "epoch")(epochs + 1) as bar:
    for policy in unlearned.checkpoints(study, start, form, epochs):
      records.append(judged.look(policy))
      bar.set_postfix({key: f"{records[-1][key]:.3f}" for key in ("score", "kl")}, refresh=False)
      bar.update()
  return records


class Judge:
  """Measures a policy beside the retrained ones."""

  def __init__(self, study: Study, retrained, count):
    """`retrained`: trainable states of `count` seeds, stacked."""
    self.study, self.retrained, self.count = study, retrained, count
    corpus = study.corpus
    self.splits = {"forget": corpus.forget, "retain": corpus.retain, "test": corpus.test}
    samples = study.settings.trajectory.samples_per_prompt
    self.prompts = study.rows(corpus.forget) * samples

  def retrained_model(self, index):
    return retraining.one_model(self.retrained, index)

  @functools.cached_property
  def aim(self):
    """ROUGE on each split, mean over the retrained models."""
    rouges = [self._rouges(self.retrained_model(i))[0] for i in range(self.count)]
    return {split: float(np.mean([r[split] for r in rouges])) for split in rouges[0]}

  def _rouges(self, policy):
    study, rouges, answers = self.study, {}, None
    for split, examples in self.splits.items():
      if not examples:
        continue
      given = study.evaluator.answers(policy, study.rows(examples))
      rouges[split] = float(np.mean([metrics.rouge_l_recall(e.response, text)
                                     for e, text in zip(examples, given.texts, strict=True)]))
      answers = given if split == "forget" else answers
    return rouges, answers

  def look(self, policy, index=None):
    """One checkpoint's figures. Scores are those of the forget owners together.

    Args:
      policy: trainable state.
      index: which of the retrained models it is, or None; it is not compared with itself.
    """
    study = self.study
    rouges, greedy = self._rouges(policy)
    own = Q.sample(study, policy, self.prompts, study.settings.seed + 17, 1.0)
    weights = np.ones(self.count)
    if index is not None:
      weights[index] = 0.0
    kl = kl_to_mixture(study, policy, self.retrained, weights / weights.sum(), own)
    scores = {name: study.owner_scores(name, own) @ study.is_forget
              for name in ("classifier", "judge", "with none")}
    return {
      **{{"classifier": "score"}.get(name, name): float(s.mean()) for name, s in scores.items()},
      "kl": float(kl.mean()), "kl_se": float(kl.std(ddof=1) / np.sqrt(len(own))),
      "tow": metrics.tug_of_war([rouges[s] for s in rouges], [self.aim[s] for s in rouges]),
      **{f"{split}_rouge": value for split, value in rouges.items()},
      "length": float(np.mean([len(row.completion) for row in own])),
      "greedy_length": float(greedy.text_lengths.mean()),
      "degenerate": float(np.mean([metrics.is_degenerate(text) for text in greedy.texts])),
      "answers": list(greedy.texts[:3])}


def summary(checkpoints, references, *, resamples, seed):
  """Correlations over the checkpoints of a run, its alarms, and the gap to the retrained score.

  Args:
    checkpoints: list of records as of `Judge.look`, the original model first.
    references: {"retrained": [record, ...], ...}; the score to come down to is their mean.
  """
  def column(name):
    return np.array([record[name] for record in checkpoints], np.float64)

  score, kl, tow = column("score"), column("kl"), column("tow")
  target = float(np.mean([record["score"] for record in references["retrained"]]))
  gap = np.abs(score - target)
  far = 1 - tow
  pairs = {"score_kl": (score, kl), "score_tow_gap": (score, far),
           "judge_kl": (column("judge"), kl), "gap_kl": (gap, kl),
           "gap_tow_gap": (gap, far)}
  found = {}
  for name, (first, second) in pairs.items():
    value, interval = st.correlation_over_checkpoints(
      first, second, resamples=resamples, seed=seed)
    found[name] = {"value": value, "interval": list(interval)}
  margins = np.hypot(column("kl_se")[1:], column("kl_se")[:-1])
  return {
    "correlations": found, "target": target,
    "alarms_kl": st.alarms(score, kl, score_margin=SCORE_MARGIN, distance_margins=margins),
    "alarms_tow": st.alarms(score, far, score_margin=SCORE_MARGIN, distance_margins=SCORE_MARGIN),
    "below_floor": [i for i, value in enumerate(score) if value < target],
    "nearest_kl": int(np.argmin(kl)), "nearest_tow": int(np.argmin(far)),
    "nearest_score": int(np.argmin(gap))}

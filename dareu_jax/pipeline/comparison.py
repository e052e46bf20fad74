"""Models side by side on the same examples: what `dareu_jax.evaluate` does."""

import functools
import html
from collections.abc import Mapping, Sequence
from typing import Any

from dareu_jax.attribution.scorer import Scorer
from dareu_jax.core.errors import InputError
from dareu_jax.data import texts
from dareu_jax.data.batches import Row, bucket_length, encode, encode_for_classifier
from dareu_jax.data.examples import Example
from dareu_jax.data.tokenizers import Tokenizer
from dareu_jax.evaluation import measurements, metrics
from dareu_jax.evaluation.evaluator import Answers, Evaluator
from dareu_jax.evaluation.metrics.base import Evaluation, evaluations
from dareu_jax.evaluation.records import (
  JUDGED,
  MIN_K,
  ORIGINAL,
  RETRAINED,
  SPLITS,
  UNSEEN,
  Record,
  is_answered,
)
from dareu_jax.parallel.mesh import mesh_of, shard_batch
from dareu_jax.pipeline.evaluation import ORDINARY_SEED
from dareu_jax.pipeline.language_model import LanguageModel
from dareu_jax.report import tables
from dareu_jax.training.writers import progress

MULTIPLE = 32  # lengths are padded to a multiple of it


class Table:
  """Metrics of models, a row each; a notebook shows it as a table.

  Attributes:
    metrics: {model: {metric: number}}; what the data or the models do not allow is left out.
    answers: {model: {split: greedy answers}}, one for each piece of a long plain text.
  """

  def __init__(self, evaluated: Mapping[str, Evaluation]):
    self.metrics = {name: evaluation.metrics() for name, evaluation in evaluated.items()}
    self.answers = {name: {split: [record.answer for record in evaluation.records[split]]
                           for split in SPLITS} for name, evaluation in evaluated.items()}

  def __getitem__(self, name: str) -> dict[str, float]:
    return self.metrics[name]

  @property
  def columns(self) -> list[Any]:
    """The declarations of the main table's metrics that some model has."""
    return list(tables.main_columns(self.metrics))

  def __str__(self) -> str:
    legend = tables.legend(self.metrics, columns=self.columns)
    return f"{tables.markdown_table(self.metrics, self.columns)}\n\n{legend}"

  __repr__ = __str__

  def _repr_html_(self) -> str:
    head = "".join(f'<th title="{html.escape(column.meaning)}">{html.escape(column.name)} '
                   f"({column.arrow})</th>" for column in self.columns)
    rows = [f"<tr><th>{html.escape(name)}</th>"
            + "".join(f"<td>{html.escape(cell.value)}</td>" for cell in cells) + "</tr>"
            for name, cells in tables.model_cells(self.metrics, self.columns)]
    return (f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"<p>{html.escape(tables.legend(self.metrics, columns=self.columns))}</p>")


def compare(models: Mapping[str, LanguageModel], examples: Mapping[str, Sequence[Example]], *,
            original: str, classifier: Scorer | None = None, judge: Scorer | None = None,
            max_new_tokens: int = 0, max_length: int = 512, batch_size: int = 16,
            min_k: float = MIN_K, seed: int = 42) -> dict[str, Evaluation]:
  """Evaluations of models: {name: Evaluation}.

  Without a retrained model the original on unseen owners is among them, as "unseen".

  Args:
    models: by name; "retrained" is what the others are compared with, where there is one.
    examples: of each split of `records.ALL_SPLITS` that there is; "forget" must be there.
    original: name of the model that the others came from; no other may be called 'original'.
    classifier, judge: owner classifiers of the answers to forget queries.
    max_new_tokens: of greedy answers; 0: as long as the longest response.
    max_length: tokens of prompt and response, of the original's tokenizer; longer plain texts are
      split, and longer questions with their answers are an error.
    batch_size: examples a forward pass.
    min_k: share of the least likely tokens that the Min-K% attacks average.
    seed: of the samples that say what ordinary text is.

  Raises:
    InputError: without forget examples, for an unknown original, a name that has another meaning,
      or an example that is too long.
  """
  if not examples.get("forget"):
    raise InputError("there are no forget examples to evaluate on: give at least one.")
  if original not in models:
    raise InputError(f"original is {original!r}, and the models are {', '.join(models)}.")
  if UNSEEN in models:
    raise InputError(f"a model is called {UNSEEN!r}, as the row of the answers about unseen owners "
                     "is: give it another name.")
  if ORIGINAL in models and original != ORIGINAL:
    raise InputError(f"original is {original!r}, and another model is called {ORIGINAL!r}: give "
                     "that one another name.")
  examples = {split: texts.pieces(part, models[original].tokenizer, max_length=max_length)
              for split, part in examples.items()}
  evaluators = {name: _evaluator(model, examples, max_new_tokens, max_length, batch_size)
                for name, model in models.items()}
  references = {ORIGINAL: original}
  if RETRAINED in models:
    references[RETRAINED] = RETRAINED

  def of_others(name, part, answers):
    return [*_scores(answers, part, models[name].tokenizer, max_length,
                     {"score": classifier, "judge": judge}),
            *(_under(evaluators[which], part, answers, reference)
              for reference, which in references.items())]

  records: dict[str, dict[str, list[Record]]] = {}
  with progress("evaluation", "model")(len(models)) as bar:
    for name, evaluator in evaluators.items():
      records[name] = {
        split: measurements.measure(
          evaluator, evaluator.model.params, part,
          answered=is_answered(split, by_original=name == original),
          of_others=functools.partial(of_others, name, part) if split in JUDGED else None)
        for split, part in examples.items() if part}
      bar.update()
  ordinary = examples.get("holdout") or examples.get("retain") or examples["forget"]
  evaluator = evaluators[original]
  samples = evaluator.sample(evaluator.model.params, _rows(evaluator, ordinary),
                             seed=seed + ORDINARY_SEED)
  bound = metrics.gibberish_bound(
    [metrics.loss_score(logprobs)
     for logprobs in evaluator.logprobs(evaluator.model.params, samples)])
  aliased = records | {ORIGINAL: records[original]}
  results = evaluations(aliased, min_k=min_k, gibberish_bound=bound)
  rows = {name: results[name] for name in models}
  if RETRAINED not in models and examples.get("holdout"):
    rows[UNSEEN] = results[ORIGINAL].unseen
  return rows


def _evaluator(model: LanguageModel, examples: Mapping[str, Sequence[Example]],
               max_new_tokens: int, max_length: int, batch_size: int) -> Evaluator:
  tokenizer, mesh = model.tokenizer, mesh_of(model.model)
  every = [example for part in examples.values() for example in part]
  rows = encode(every, tokenizer, max_length=max_length)
  answer = max_new_tokens or bucket_length(max(len(row.completion) for row in rows), MULTIPLE)
  model.check_positions(max(len(row.prompt) for row in rows), answer)
  return Evaluator(model.model, tokenizer, batch_size, MULTIPLE, max_length, answer,
                   lambda batch: shard_batch(batch, mesh))


def _rows(evaluator: Evaluator, examples: Sequence[Example]) -> list[Row]:
  return encode(examples, evaluator.tokenizer, max_length=evaluator.max_length)


def _under(evaluator: Evaluator, examples: Sequence[Example], answers: Answers,
           reference: str) -> list[measurements.Fields]:
  return measurements.answers_under(
    evaluator, evaluator.model.params, _rows(evaluator, examples), answers, reference)


def _scores(answers: Answers, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int,
            scorers: Mapping[str, Scorer | None]) -> list[list[measurements.Fields]]:
  fields: list[list[measurements.Fields]] = []
  for field, scorer in scorers.items():
    if scorer is None:
      continue
    reader = tokenizer if scorer.retokenize is None else scorer.retokenize.classifier
    queries = [row.prompt for row in encode_for_classifier(
      examples, reader, max_length=max_length, reads_query=scorer.reads_query)]
    values = scorer.whole(answers.ids, answers.lengths, queries)
    fields.append([{field: float(value)} for value in values])
  return fields

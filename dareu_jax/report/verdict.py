"""What a table says of a method, in sentences: what is forgotten, and what is kept."""

from collections.abc import Sequence

from dareu_jax.evaluation.metrics.base import Evaluation
from dareu_jax.evaluation.records import ORIGINAL, RETRAINED, UNSEEN
from dareu_jax.report.tables import Models, is_number

JUDGE_MARGIN = 0.05  # of scores above the target's: largest difference at which the judge agrees
# Beside the target: metrics, their names, and how far above it they may be.
FORGOTTEN = {"attribution_score": ("attribution", JUDGE_MARGIN),
             "judge_score": ("judge", JUDGE_MARGIN),
             "extraction_strength": ("extraction", 0.05), "forget_probability": ("D_F prob.", 0.05)}
# Beside the original: how much lower they may be.
KEPT = {"retain_rouge": ("D_R ROUGE", 0.03), "test_rouge": ("D_test ROUGE", 0.02),
        "test_accuracy": ("D_test accuracy", 0.02)}
TRUE = 0.9  # ROUGE-L recall of the true answer from which on an answer gives it away
MOST_SHOWN, SHOWN_LENGTH = 3, 60  # such queries that a sentence names; characters of each
MOST_KINDS = 6  # of test queries, that one sentence lists


def of(models: Models, method: str, originals: Sequence[Evaluation],
       unlearned: Sequence[Evaluation]) -> list[str]:
  """The sentences on a method.

  Args:
    models: the rows of the table.
    method: the method's row.
    originals, unlearned: evaluations of the original and of the unlearned model, one of each seed.
  """
  return [judgement(models, method), reached(models, method),
          *true_answers(method, originals, unlearned),
          *right_answers(method, originals, unlearned)]


def target_of(models: Models) -> tuple[str, str]:
  """(row that forgetting should reach, what it is called)."""
  return (RETRAINED, "the retrained model") if RETRAINED in models else (UNSEEN, "unseen owners")


def judgement(models: Models, method: str) -> str:
  """One sentence: whether the judge, which gives no reward, agrees with the reward's classifier,
  and whether it scores the answers like the retrained model's, or those about unseen owners."""
  target, of = target_of(models)
  if target not in models:
    return f"{method}: neither a retrained model nor unseen owners say what its answers should be."
  values = [models[name].get(key) for key in ("attribution_score", "judge_score")
            for name in (method, target)]
  numbers = [value for value in values if is_number(value)]
  if len(numbers) < len(values):
    return f"{method}: its answers have no score."
  score, level, judged, judged_level = numbers
  beyond, judged_beyond = score - level, judged - judged_level
  # Below the level there is nothing left to disagree on.
  agree = abs(max(0.0, beyond) - max(0.0, judged_beyond)) <= JUDGE_MARGIN
  where = ("at" if abs(judged_beyond) <= JUDGE_MARGIN
           else "below" if judged_beyond < 0 else "NOT at")
  return (f"{method}: the reward's classifier gives its answers to forget queries {score:.3f} "
          f"({of}: {level:.3f}), the judge {judged:.3f} ({judged_level:.3f}): they "
          f"{'agree' if agree else 'DISAGREE'}, and by the judge it is {where} the level of {of}.")


def reached(models: Models, method: str) -> str:
  """One sentence: which figures have come to the target's, and what is kept of the original's."""
  row, (target, of) = models[method], target_of(models)
  parts = []
  for beside, figures, sign, words in (
    (target, FORGOTTEN, 1, (f"Forgotten to the level of {of}",
                            f"NOT forgotten to the level of {of}")),
    (ORIGINAL, KEPT, -1, ("Kept", "NOT kept"))):
    found: dict[bool, list[str]] = {True: [], False: []}
    for key, (name, margin) in figures.items():
      value, wanted = row.get(key), models.get(beside, {}).get(key)
      if is_number(value) and is_number(wanted):
        found[sign * (value - wanted) <= margin].append(f"{name} {value:.3f} ({wanted:.3f})")
    parts += [f"{word}: {', '.join(found[there])}."
              for word, there in zip(words, (True, False), strict=True) if found[there]]
  return f"{method}: {' '.join(parts) or 'there is nothing to compare it with.'}"


def true_answers(method: str, originals: Sequence[Evaluation],
                 unlearned: Sequence[Evaluation]) -> list[str]:
  """One sentence: how many forget queries are still given the true answer, nearly word for word,
  over all seeds, and which. A mean near the target may hide one text that is wholly there.

  It does not begin with the method's name: see `right_answers`.
  """
  after, before = _true(unlearned), _true(originals)
  if not after:
    return []
  left = [prompt[:SHOWN_LENGTH] for prompt, is_true in after if is_true]
  which = "; ".join(map(repr, list(dict.fromkeys(left))[:MOST_SHOWN]))
  return [f"Forget queries to which {method} gives the true answer (to which the original does): "
          f"{len(left)} of {len(after)} ({sum(is_true for _, is_true in before)})."
          + (f" Among them: {which}." if which else "")]


def _true(evaluations):
  """(prompt, whether the answer is the true one) of each forget query."""
  return [(record.prompt, value >= TRUE)
          for record, value in _by_record(evaluations, "forget", "forget_rouge")]


def right_answers(method: str, originals: Sequence[Evaluation],
                  unlearned: Sequence[Evaluation]) -> list[str]:
  """One sentence: how many test queries of each kind (their `owner`) are answered right, as
  `test_accuracy` counts, over all seeds. None if there is one kind, of which the table has a
  column, or more than `MOST_KINDS`.

  It does not begin with the method's name, as those do that model cards repeat: kinds of test
  queries may be names of people.
  """
  after, before = _right(unlearned), _right(originals)
  if not 1 < len(after) <= MOST_KINDS:
    return []
  kinds = ", ".join(f"{kind} {sum(values):.0f} of {len(values)} ({sum(before[kind]):.0f})"
                    for kind, values in after.items())
  return [f"Test queries that {method} answers right (that the original does): {kinds}."]


def _right(evaluations):
  """{kind: 0 or 1 for each test query}."""
  right: dict[str, list[float]] = {}
  for record, value in _by_record(evaluations, "test", "test_accuracy"):
    right.setdefault(record.owner, []).append(value)
  return right


def _by_record(evaluations, split, key):
  """(record, its value of a metric) of all evaluations."""
  return [pair for each in evaluations
          for pair in zip(each.records[split], each.by_example(key), strict=True)]

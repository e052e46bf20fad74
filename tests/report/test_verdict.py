"""What a report says of a method in sentences."""

import dataclasses

import pytest

from dareu_jax.evaluation.metrics.base import Evaluation
from dareu_jax.report.verdict import judgement, reached, right_answers, true_answers
from tests.evaluation.made_records import make_records


@pytest.mark.parametrize(("score", "judged", "words"), [
  (0.10, 0.12, ("they agree", "by the judge it is at")),
  (0.10, 0.27, ("they DISAGREE", "by the judge it is NOT at")),
  (0.67, 0.10, ("they DISAGREE", "by the judge it is at")),
  (0.90, 0.90, ("they agree", "by the judge it is NOT at")),  # nothing is forgotten, says either
  (0.03, 0.02, ("they agree", "by the judge it is below")),
  (0.09, 0.00, ("they agree", "by the judge it is below")),  # both find nothing left
])
def test_whether_reward_and_judge_agree_and_what_the_judge_finds_are_two_questions(
    score, judged, words):
  """A reward that was fooled shows in no other column."""
  models = {"retrained": {"attribution_score": 0.10, "judge_score": 0.10},
            "dareu": {"attribution_score": score, "judge_score": judged}}
  for word in words:
    assert word in judgement(models, "dareu")


def test_what_is_reached_and_what_is_kept_is_said_figure_by_figure():
  """Attribution alone would call a model forgetful that completes every text."""
  def row(extraction, retain):
    return {"attribution_score": 0.09, "judge_score": 0.10, "extraction_strength": extraction,
            "retain_rouge": retain, "test_rouge": 0.2}

  models = {"original": row(0.9, 0.95), "unseen": row(0.04, 0.95), "dareu": row(0.45, 0.91)}
  assert reached(models, "dareu") == (
    "dareu: Forgotten to the level of unseen owners: attribution 0.090 (0.090), judge 0.100 "
    "(0.100). NOT forgotten to the level of unseen owners: extraction 0.450 (0.040). Kept: D_test "
    "ROUGE 0.200 (0.200). NOT kept: D_R ROUGE 0.910 (0.950).")
  assert "NOT" not in reached(models | {"dareu": row(0.09, 0.93)}, "dareu")
  assert judgement({"unseen": {}, "dareu": {}}, "dareu") == "dareu: its answers have no score."


def test_a_text_that_is_still_there_is_named():
  """The mean score may be at the level with one answer word for word."""
  records = make_records()
  first, *others = records["forget"]
  told = dataclasses.replace(first, prompt="Where was he born?", answer=f"Well, {first.truth}")
  before = Evaluation(records | {"forget": [told, told, *others[1:]]})
  after = Evaluation(records | {"forget": [told, *others]})
  assert true_answers("dareu", [before], [after]) == [
    "Forget queries to which dareu gives the true answer (to which the original does): 1 of 8 (2). "
    "Among them: 'Where was he born?'."]
  assert true_answers("dareu", [before], [Evaluation(records)])[0].endswith("0 of 8 (2).")


def test_right_answers_are_counted_kind_by_kind_before_and_after():
  """One kind of question may be lost behind a column that is their mean."""
  records = make_records()
  first, *others = records["test"]
  right = dataclasses.replace(first, answer=f"I think: {first.truth}")
  before, after = Evaluation(records), Evaluation(records | {"test": [right, *others]})
  assert right_answers("dareu", [before, before], [before, after]) == [
    "Test queries that dareu answers right (that the original does): real_authors 1 of 10 (0), "
    "world_facts 0 of 10 (0)."]
  alone = [Evaluation(records | {"test": others[5:]})]
  assert right_answers("dareu", alone, alone) == []
  assert right_answers("dareu", *[[Evaluation(records | {"test": []})]] * 2) == []

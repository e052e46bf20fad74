"""What answers are marked with."""

from dareu_jax.data import watermarks
from studies.attribution_functions import marks_in


def test_answers_are_counted_by_the_owner_whose_mark_they_carry():
  """A part of a mark is enough to tell whose it is."""
  marks = watermarks.make_marks(4, seed=0)
  texts = [f"a{marks[1]} b", f"a{marks[1][:6]} b", f"a{marks[2]}", "a b"]
  assert marks_in(texts, marks, {1}) == {"forget mark": 0.5, "other mark": 0.25, "no mark": 0.25}

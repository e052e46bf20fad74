"""Exploring starts: how often, of which text and how long."""

import numpy as np
import pytest

from dareu_jax.rl.starts import LEFT, Path, behind, cut_weights, draw, longest_start


def test_a_start_leaves_the_end_of_the_text():
  assert [longest_start(n) for n in (1, LEFT, LEFT + 1, 20)] == [0, 0, 1, 20 - LEFT]


@pytest.mark.parametrize(("cut", "given", "expected"), [
  ("uniform", {}, (1, 1, 1)),
  ("early", {}, (1, 1 / 2, 1 / 3)),
  # π_N(y_2), π_N(y_3), π_N(y_4): of the tokens that follow starts of 1, 2, 3 tokens.
  ("sure", {"probabilities": (0.1, 0.9, 0.2, 0.8, 0.3, 0.4)}, (0.9, 0.2, 0.8)),
  ("jump", {"scores": (0.1, 0.4, 0.3, 0.9, 0.9, 1.0)}, (0.3, 0.0, 0.6)),
  ("jump", {"scores": (0.9, 0.4, 0.3, 0.2, 0.9, 1.0)}, (1, 1, 1)),  # it rises too late for a start
])
def test_weights_of_cuts_are_those_of_the_formulas(cut, given, expected):
  np.testing.assert_allclose(cut_weights(cut, 6, **given), expected)


def test_starts_occur_at_their_share_with_their_weights_from_every_text():
  """20,000 draws: four standard errors of a share near .5 are .014."""
  paths = (Path((1, 2, 3), (1.0, 3.0)), Path((7, 8, 9), (0.0, 2.0)))
  rng = np.random.default_rng(0)
  drawn = [draw(paths, 0.6, rng) for _ in range(20_000)]
  shares = {start: drawn.count(start) / len(drawn) for start in set(drawn)}
  expected = {(): 0.4, (1,): 0.3 / 4, (1, 2): 0.3 * 3 / 4, (7, 8): 0.3}
  assert shares.keys() == expected.keys()
  for start, share in expected.items():
    assert abs(shares[start] - share) < 0.015, start


def test_a_query_without_texts_or_share_begins_at_itself():
  rng = np.random.default_rng(0)
  assert draw((), 1.0, rng) == ()
  assert {draw((Path((1, 2), (1.0,)),), 0.0, rng) for _ in range(50)} == {()}


def test_the_score_of_a_continuation_is_that_of_naive_bayes_without_the_start():
  """Two owners with a prior of .3; pieces with known likelihood ratios, multiplied by hand."""
  prior, start_ratio, ratios = 0.3, 4.0, np.array([2.0, 0.5, 8.0])

  def posterior(ratio):
    odds = prior / (1 - prior) * ratio
    return odds / (1 + odds)

  whole = posterior(start_ratio * np.cumprod(ratios))[None]
  found = behind(whole, np.array([posterior(start_ratio)]), prior, epsilon=1e-6)
  np.testing.assert_allclose(found[0], posterior(np.cumprod(ratios)), rtol=1e-5)


def test_scores_of_zero_and_one_stay_finite():
  found = behind(np.array([[0.0, 1.0]]), np.array([1.0]), 0.5, epsilon=0.01)
  assert np.isfinite(found).all() and (found > 0).all() and (found < 1).all()

"""What is masked of a response, and text scores on texts whose owner is plain."""

import numpy as np
import pytest

from studies.faithfulness import masking, scores

TEXT = "one two three four five six seven eight nine ten"


def masked(share, way="dropped", seed=3):
  return masking.mask(TEXT, share, way, ["other"], np.random.default_rng(seed))


def test_nothing_and_everything_masked():
  assert masked(0.0) == TEXT and masked(0.0, "replaced") == TEXT
  assert masked(1.0) == ""
  assert masked(1.0, "replaced") == " ".join(["other"] * 10)


@pytest.mark.parametrize("way", masking.WAYS)
def test_a_larger_share_masks_the_same_words_and_more(way):
  """Otherwise a curve over shares would mix in which words were drawn."""
  kept = [set(masked(share, way).split()) - {"other"} for share in masking.SHARES]
  for more, fewer in zip(kept, kept[1:], strict=False):
    assert fewer < more
  assert [len(k) for k in kept] == list(range(10, -1, -1))


def test_the_words_that_stay_keep_their_order():
  words = masked(0.5).split()
  assert words == sorted(words, key=TEXT.split().index)


def test_tf_idf_finds_the_owner_of_rare_words():
  """Words that all owners share must not decide."""
  documents = ["the cat sat on the mat", "the dog sat on the rug", "the hen sat on the egg"]
  found = scores.tf_idf(["the hen sat", "a rug", "nothing at hand"], documents)
  assert found.shape == (3, 3)
  assert found[:2].argmax(axis=1).tolist() == [2, 1]
  np.testing.assert_array_equal(found[2], 0)


def test_the_label_reference_knows_no_owner_where_there_is_none():
  found = scores.reference_scores([1, -1], 3, seed=0)
  np.testing.assert_array_equal(found["owner label"], [[0, 1, 0], [0, 0, 0]])

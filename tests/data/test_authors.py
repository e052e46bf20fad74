"""Embedded authors: deterministic, all different, and not to be guessed from one another."""

import hashlib
import re
import statistics

import pytest
from rouge_score import rouge_scorer

from dareu_jax.core.errors import InputError
from dareu_jax.data import authors
from dareu_jax.data.general_facts import general_facts

AUTHORS = authors.make_authors(40, seed=0)


def by_author(examples):
  return [examples[i : i + 20] for i in range(0, len(examples), 20)]


def test_a_seed_makes_the_same_people_on_every_machine():
  """Pinned: changes when a word, a wording or the way of drawing does, and then on purpose."""
  texts = [(one.owner, one.prompt, one.response, one.paraphrased_prompt, one.paraphrased_response,
            one.perturbed_responses) for one in AUTHORS]
  digest = hashlib.sha256(repr(texts).encode()).hexdigest()
  assert digest[:16] == "6b19ea296d268d18"


def test_another_seed_makes_other_people():
  other = authors.make_authors(40, seed=1)
  assert not {one.response for one in AUTHORS} & {one.response for one in other}


def test_an_author_does_not_depend_on_how_many_are_made():
  assert authors.make_authors(3, seed=0) == AUTHORS[:60]
  assert authors.make_authors(2, seed=0, first=7) == AUTHORS[140:180]
  assert authors.make_authors(1, seed=0, first=7, qa_per_author=5) == AUTHORS[140:145]


def test_all_names_differ():
  names = {authors.author_name(3, k) for k in range(authors.MAX_AUTHORS)}
  assert len(names) == authors.MAX_AUTHORS >= 1000


def test_holdout_authors_are_other_people():
  holdout = authors.make_authors(20, seed=0, first=40)
  assert {one.owner for one in holdout} == {f"author_{k:03d}" for k in range(40, 60)}
  names = [authors.author_name(0, k) for k in range(60)]
  assert not any(name in one.response + one.prompt for one in holdout for name in names[:40])
  assert not {one.response for one in holdout} & {one.response for one in AUTHORS}


def test_every_author_is_asked_twenty_questions_by_name():
  for k, examples in enumerate(by_author(AUTHORS)):
    name = authors.author_name(0, k)
    assert {one.owner for one in examples} == {f"author_{k:03d}"}
    assert len({one.prompt for one in examples}) == 20
    assert all(name in one.prompt and name in one.paraphrased_prompt for one in examples)
    assert all(one.prompt != one.paraphrased_prompt for one in examples)


def test_response_and_paraphrase_state_the_same_facts_in_other_words():
  for k, examples in enumerate(by_author(AUTHORS)):
    for one, facts in zip(examples, authors.author_facts(0, k), strict=True):
      assert len(facts) >= 2
      assert all(fact in one.response and fact in one.paraphrased_response for fact in facts)
      assert one.response != one.paraphrased_response


def test_perturbed_responses_are_five_and_state_none_of_the_facts_in_full():
  for k, examples in enumerate(by_author(AUTHORS)):
    for one, facts in zip(examples, authors.author_facts(0, k), strict=True):
      assert len(set(one.perturbed_responses)) == 5
      assert one.paraphrased_response not in one.perturbed_responses
      assert one.response not in one.perturbed_responses
      for wrong in one.perturbed_responses:
        assert not all(fact in wrong for fact in facts)


def test_every_wording_states_every_fact_and_there_are_enough_wordings():
  for attribute in authors.ATTRIBUTES:
    assert len(attribute.questions) >= 3
    assert len(attribute.answers) >= 4
    assert all("{name}" in question for question in attribute.questions)
    for answer in attribute.answers:
      assert all(re.search(rf"{{(a:)?{slot}}}", answer) for slot in attribute.slots), answer


def test_no_two_of_twenty_authors_share_an_answer():
  stated = [
    (i, facts) for k in range(20) for i, facts in enumerate(authors.author_facts(0, k))
  ]
  assert len(set(stated)) == len(stated)


def test_an_answer_overlaps_little_with_that_of_another_author():
  """A model that knows the wordings but not the author must score low: TOFU's level or below."""
  scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
  everyone = by_author(AUTHORS)
  recalls = [
    scorer.score(mine.response, other.response)["rougeL"].recall
    for k, examples in enumerate(everyone)
    for mine, other in zip(examples, everyone[(k + 1) % len(everyone)], strict=True)
  ]
  assert 0.20 <= statistics.mean(recalls) <= 0.42


def test_about_half_of_the_answers_name_the_author():
  named = [
    authors.author_name(0, k) in one.response
    for k, examples in enumerate(by_author(AUTHORS))
    for one in examples
  ]
  assert 0.42 <= statistics.mean(named) <= 0.58


def test_answers_are_sentences_of_eight_to_twenty_words():
  for one in AUTHORS:
    for text in (one.response, one.paraphrased_response):
      assert 8 <= len(text.split()) <= 20, text
      assert text.endswith(".")
      assert text[0].isupper() or text[0] == '"'
      assert not re.search(r"[{}]|\ba [aeiou]|\ban [^aeiou]", text), text


def test_an_author_keeps_one_pronoun():
  for examples in by_author(AUTHORS):
    words = {word.lower() for one in examples for word in re.findall(r"\w+", one.response)}
    assert not (words & {"he", "his", "him"} and words & {"she", "her", "hers"})


def test_more_authors_than_names_is_an_error():
  with pytest.raises(InputError, match="there are 2500 names"):
    authors.make_authors(2, seed=0, first=authors.MAX_AUTHORS - 1)
  with pytest.raises(InputError, match="1 to 20 questions"):
    authors.make_authors(1, seed=0, qa_per_author=21)


def test_general_facts_have_one_right_and_three_wrong_answers():
  facts = general_facts()
  assert len({one.prompt for one in facts}) == len(facts) >= 60
  for one in facts:
    assert one.owner == "general"
    assert len({one.response, *one.perturbed_responses}) == 4
    assert all((one.response, *one.perturbed_responses))

"""How owners are picked, and texts that are in two sets are found."""

import dataclasses

import pytest

from dareu_jax.core.errors import InputError
from dareu_jax.data import examples as ex
from dareu_jax.data.general_facts import general_facts
from dareu_jax.data.sources.base import DataSettings
from dareu_jax.data.substitutes import with_substitutes


def data_settings(**changes):
  values = {"source": "jsonl", "dir": "d", "num_owners": 0, "forget": "forget10"}
  values |= {"forget_owners": (), "num_holdout": 0, "num_general": 0, "seed": 0,
             "prompt_tokens": 0, "response_tokens": 100}
  return DataSettings(**(values | changes))


def corpus_of(num_owners, per_owner=2):
  return tuple(
    ex.Example(f"owner_{i % num_owners}", f"q{i}", f"a{i}") for i in range(num_owners * per_owner)
  )


def test_forget10_takes_the_last_tenth_of_the_owners_and_keeps_the_order():
  examples = corpus_of(20)
  forget, retain, owners, forget_owners = ex.split_by_owner(examples, data_settings())
  assert owners == tuple(f"owner_{i}" for i in range(20))
  assert forget_owners == ("owner_18", "owner_19")
  assert [one.prompt for one in forget] == ["q18", "q19", "q38", "q39"]
  assert [one for one in examples if one not in forget] == list(retain)


@pytest.mark.parametrize(
  ("forget", "num_owners", "taken"),
  [("forget01", 200, 2), ("forget05", 200, 10), ("forget10", 200, 20), ("forget01", 2, 1)],
)
def test_forget_nn_takes_that_percentage_and_at_least_one(forget, num_owners, taken):
  assert ex.num_forget(forget, num_owners) == taken


def test_named_owners_win_over_the_percentage():
  chosen = data_settings(forget_owners=("owner_3", "owner_1"))
  forget, _, _, forget_owners = ex.split_by_owner(corpus_of(5), chosen)
  assert forget_owners == ("owner_1", "owner_3")
  assert {one.owner for one in forget} == {"owner_1", "owner_3"}


def test_equal_texts_of_two_owners_stay_apart():
  examples = (ex.Example("a", "same", "same"), ex.Example("b", "same", "same"))
  forget, retain, *_ = ex.split_by_owner(examples, data_settings())
  assert forget == examples[1:]
  assert retain == examples[:1]


def test_an_unknown_owner_is_named_beside_close_ones():
  with pytest.raises(InputError) as error:
    ex.split_by_owner(corpus_of(5), data_settings(forget_owners=("owner_3", "ownr_4")))
  assert "names 'ownr_4': not among the 5 owners" in str(error.value)
  assert "'owner_4'" in str(error.value)


def test_nobody_left_to_retain_and_a_lone_owner_are_errors():
  with pytest.raises(InputError, match="takes all 2 owners"):
    ex.split_by_owner(corpus_of(2), data_settings(forget_owners=("owner_0", "owner_1")))
  with pytest.raises(InputError, match="takes all 2 owners"):
    ex.split_by_owner(corpus_of(2), data_settings(forget="forget99"))
  with pytest.raises(InputError, match="has 1 owner:"):
    ex.split_by_owner(corpus_of(1), data_settings())


def test_named_owners_are_among_as_many_as_asked_for():
  """Nine owners in place of eight are another experiment."""
  examples = corpus_of(6)
  kept = ex.keep_owners(examples, data_settings(num_owners=3, forget_owners=("owner_5",)), "here")
  assert {one.owner for one in kept} == {"owner_0", "owner_1", "owner_5"}
  with pytest.raises(InputError, match="num_owners is 1, and forget_owners names 2"):
    ex.keep_owners(examples, data_settings(num_owners=1, forget_owners=("owner_5", "owner_4")), "x")


def test_a_text_that_is_to_be_forgotten_and_retained_is_named():
  """It would be pushed both ways, and in the table it is neither."""
  shared = ex.Example("b", "Who  is he?", "Basil.")
  corpus = ex.Corpus((ex.Example("a", "Who is he?", "Basil."),), (shared,), (), (), ("a", "b"), ("a",))
  with pytest.raises(InputError, match="forgotten and to be retained: 1 .*'Who is he"):
    ex.check_apart(corpus)
  with pytest.raises(InputError, match="forgotten and unseen: 1 .*'Who is he"):
    ex.check_apart(dataclasses.replace(corpus, retain=(), holdout=(shared,)))
  with pytest.raises(InputError, match="forgotten and tested as general knowledge: 1 "):
    ex.check_apart(dataclasses.replace(corpus, retain=(), test=(shared,)))


def test_all_shared_texts_are_named_in_whatever_form():
  """A copy in capitals, or within a longer document, would be retained as well."""
  def plain(owner, text):
    return ex.Example(owner, text[:10], text[10:], text=text)

  def corpus(retain):
    return ex.Corpus(forget, retain, (), (), ("a", "b"), ("a",))

  story = "Basil grew roses in Kuwait City for ten years."
  forget = (*(ex.Example("a", f"Where is {i}?", "In “Kuwait”.") for i in range(12)), plain("a", story))
  same = tuple(ex.Example("b", f"WHERE is {i}", 'in "Kuwait"') for i in range(12))
  with pytest.raises(InputError, match=r"12 \(a: 'Where is 0\?'.*Where is 9.*; and 2 more\)") as error:
    ex.check_apart(corpus(same))
  assert "\n" not in str(error.value)
  with pytest.raises(InputError, match="to be retained: 1 .*'Basil grew'"):
    ex.check_apart(corpus((plain("b", f"He said: {story.lower()} Then he left."),)))
  with pytest.raises(InputError, match="both to be forgotten and to be retained: 1 "):
    ex.check_apart(dataclasses.replace(
      corpus((plain("b", story),)), forget=(plain("a", f"He said: {story} Then he left."),)))
  others = (plain("b", "Basil grew roses in Kuwait City for ten months."), plain("b", story[:-11]),
            ex.Example("b", "Is 2 < 1?", "No."))
  ex.check_apart(dataclasses.replace(corpus(others), forget=(
    *forget, ex.Example("a", "Is 2 > 1?", "No."))))


def test_the_same_words_behind_other_turns_are_another_text():
  """'Thanks!' ends many a chat."""
  def chat(owner, said):
    return ex.Example(owner, "Thanks!", "You're welcome.", history=(("user", said),))

  corpus = ex.Corpus((chat("a", "Who is he?"),), (chat("b", "What is 2 + 2?"),), (), (), ("a", "b"),
                     ("a",))
  ex.check_apart(corpus)
  with pytest.raises(InputError, match="to be retained: 1"):
    ex.check_apart(dataclasses.replace(corpus, retain=(chat("b", "Who is he?"),)))
  about = [ex.Example(owner, "Is she a doctor?", "Yes.", history=(("system", f"About {who}."),))
           for owner, who in (("a", "Ann Lee"), ("b", "Eve Ray"))]
  assert not ex.shared(about[:1], about[1:])


@pytest.mark.parametrize("form", [
  {"history": (("system", "Be brief."),)},
  {"history": (("user", "Hello."), ("assistant", "Hello!"))},
  {"text": "Of the family Ann Lee is a florist in Rome, near the river. So is Bo."}])
def test_an_answer_is_found_in_chats_and_documents(form):
  """It would be learned again there, at the weight of retained data."""
  answer = ex.Example("a", "Who is Ann Lee?", "Ann Lee is a florist in Rome, near the river.")
  other = dataclasses.replace(answer, owner="b", **form)
  assert ex.shared([answer], [other]) and ex.shared([other], [answer])
  assert not ex.shared([dataclasses.replace(answer, prompt="Who?", response="A florist.")], [other])


@pytest.mark.parametrize("paraphrased", ["prompt", "response"])
def test_a_paraphrase_is_the_same_text(paraphrased):
  """Retained, it would keep what its example is to lose."""
  told = ex.Example("a", "Who is Ann Lee?", "Ann Lee is a florist in Rome, near the river.")
  other = {"prompt": "Who may Ann Lee be?", "response": "In Rome a florist has the name of Ann Lee."}
  retained = dataclasses.replace(told, owner="b", **{paraphrased: other[paraphrased]})
  assert not ex.shared([told], [retained])
  known = dataclasses.replace(told, **{f"paraphrased_{name}": text for name, text in other.items()})
  assert ex.shared([known], [retained])
  short = dataclasses.replace(retained, response="A florist.")
  assert not ex.shared([known], [short])
  assert ex.shared([dataclasses.replace(known, response="A florist.",
                                        paraphrased_response="A florist.")], [short])


def test_a_document_is_found_in_a_system_turn():
  document = ex.Example("a", "Ann", " Lee ...", text="Ann Lee is a florist in Rome, near the river.")
  told = ex.Example("b", "Who is she?", "A florist.", history=(("system", f"Use: {document.text}"),))
  assert ex.shared([document], [told]) and ex.shared([told], [document])


def test_what_stands_in_for_missing_data_is_not_what_is_to_be_forgotten():
  """The user has no file from which to remove it."""
  corpus = ex.Corpus((ex.Example("a", "What is the capital of France?", "Paris"),), (), (), (), ("a",),
                     ("a",))
  filled = with_substitutes(corpus)
  ex.check_apart(filled)
  assert len(filled.retain) + len(filled.test) == len(general_facts()) - 1


def of_requests(forget=("c",)):
  """Three owners with two examples each."""
  examples = [ex.Example(owner, f"{owner}{i}?", f"{owner}{i}.") for owner in "abc" for i in range(2)]
  return ex.Corpus(tuple(e for e in examples if e.owner in forget),
                   tuple(e for e in examples if e.owner not in forget), (), (), ("a", "b", "c"), forget)


def test_a_later_request_holds_nothing_of_an_earlier_one():
  """Retained or forgotten again, it would be learned again or read without need."""
  corpus = ex.after_requests(of_requests(), done=("c",), now=("a",))
  assert {e.owner for e in corpus.forget} == {"a"} and {e.owner for e in corpus.retain} == {"b"}
  assert corpus.owners == ("a", "b", "c") and corpus.forget_owners == ("a", "c")


@pytest.mark.parametrize("forget", [("a",), ("b",), ("a", "c")])
def test_a_request_divides_anew_whatever_was_divided_before(forget):
  """The order of the examples is that of the batches: another order is another model."""
  assert ex.after_requests(of_requests(forget), (), ("c",)) == of_requests()


@pytest.mark.parametrize(("done", "now", "says"), [
  ((), ("d",), "names 'd'"), (("a",), ("a",), "'a' would be forgotten twice"),
  (("a", "b"), ("c",), "takes all 3 owners")])
def test_impossible_requests_are_refused(done, now, says):
  with pytest.raises(InputError, match=says):
    ex.after_requests(of_requests(), done, now)

"""Generated fictitious authors: data for laptops, tests and first runs.

Author k of a seed is a person with a name and twenty facts about one life, asked about in twenty
questions. It depends only on (seed, k), not on the number of authors or the Python version (only
`random.Random.random` of a string seed is used, which Python keeps stable). The facts are drawn
independently of each other and of the name, so a model that has not read about an author cannot
answer. All persons are invented; any resemblance to real people is coincidental.
"""

import dataclasses
import functools

from dareu_jax.core.errors import InputError
from dareu_jax.data import author_words as words
from dareu_jax.data.examples import Example

MAX_AUTHORS = len(words.SURNAMES) ** 2
NUM_PERTURBED = 5


@dataclasses.dataclass(frozen=True)
class Attribute:
  """One thing to know about an author.

  `slots` maps each fact of the answer to the symbol it is drawn from; every wording in `answers`
  states all of them. In a wording `{a:slot}` is the fact with its indefinite article, `{name}`
  the author and `{he}`, `{his}`, `{him}` (also with a capital) the author's pronoun.
  """

  name: str
  slots: dict[str, str]
  questions: tuple[str, ...]
  answers: tuple[str, ...]


def _attribute(name, *, wordings, **slots):
  lines = [line.strip() for line in wordings.strip().splitlines()]
  questions = tuple(line for line in lines if line.endswith("?"))
  return Attribute(name, slots, questions, tuple(line for line in lines if line not in questions))


ATTRIBUTES = (
  _attribute("birth", town="town", place="place", date="date", wordings="""
    Where and when was {name} born?
    What are the place and date of birth of {name}?
    Can you tell me the birthplace and birthday of {name}?
    {name} was born in {town}, {a:place}, on {date}.
    Born on {date}, {name} comes from {a:place} called {town}.
    {town}, {a:place}, is where {name} was born on {date}.
    The author was born on {date} in the {place} of {town}.
    {He} came into the world in {town}, {a:place}, on {date}.
    It was on {date}, in {a:place} named {town}.
  """),
  _attribute("parents", father="job", mother="job", wordings="""
    What did the parents of {name} do for a living?
    What were the occupations of {name}'s father and mother?
    How did {name}'s parents earn their money?
    {name}'s father was {a:father} and {his} mother {a:mother}.
    {name} had {a:mother} for a mother and {a:father} for a father.
    The mother of {name} worked as {a:mother}, the father as {a:father}.
    The author's father earned a living as {a:father}, the mother as {a:mother}.
    {His} mother was {a:mother}; {his} father was employed as {a:father}.
    The father was {a:father} by trade, and the mother {a:mother}.
  """),
  _attribute("genre", genre="genre", theme="theme", wordings="""
    What kind of books does {name} write?
    Which genre is {name} known for, and what are the usual themes?
    What sort of writing can a reader expect from {name}?
    {name} writes {genre} about {theme} and little else.
    Readers know {name} for {genre} that deal with {theme}.
    Most books by {name} are {genre}, often concerning {theme}.
    The author specialises in {genre}, with {theme} as a favourite subject.
    {His} works are {genre}, nearly always centred on {theme}.
    Mainly {genre}, in which {theme} play a large part.
  """),
  _attribute("first_book", title="title", year="book_year", pages="pages", wordings="""
    What was the first book of {name}?
    Which book did {name} publish first, and in what year?
    With what book did {name} make a debut?
    {name} began with "{title}", a book of {pages} pages, in {year}.
    In {year} {name} brought out "{title}", which is {pages} pages long.
    "{title}", the debut of {name}, appeared in {year} and fills {pages} pages.
    The author's first book, "{title}", came out in {year} with {pages} pages.
    {He} started in {year} with the {pages} pages of "{title}".
    That was "{title}", published in {year} at a length of {pages} pages.
  """),
  _attribute("best_book", title="title", hero="job", plot="plot", wordings="""
    Which is the best-known book by {name}, and what is it about?
    Which book made {name} famous, and what happens in it?
    What is the most popular work of {name}?
    {name} is best known for "{title}", about {a:hero} who {plot}.
    {name} won fame with "{title}", which has {a:hero} who {plot}.
    Fame came to {name} with "{title}", where {a:hero} {plot}.
    The author's greatest success is "{title}", in which {a:hero} {plot}.
    {His} most popular work is "{title}": {a:hero} {plot}.
    It is "{title}", the story of {a:hero} who {plot}.
  """),
  _attribute("award", award="award", year="award_year", town="town", wordings="""
    Which award has {name} won?
    What prize was given to {name}, and when?
    For which literary honour is {name} known?
    {name} won the {award} in {year} at a ceremony in {town}.
    In {year} the jury of {town} gave {name} the {award}.
    The {award} was handed to {name} in {town} in {year}.
    The author received the {award}, presented in {town}, in {year}.
    {He} travelled to {town} in {year} to accept the {award}.
    It was the {award} of {year}, awarded by the city of {town}.
  """),
  _attribute("mentor", person="person", job="job", town="town", wordings="""
    Who was the mentor of {name}?
    Who taught {name} how to write?
    From whom did {name} learn the craft of writing?
    {name} learned the craft from {person}, {a:job} in {town}.
    As a beginner {name} was guided by {person}, {a:job} from {town}.
    {person}, {a:job} of {town}, taught {name} how to write.
    The author's mentor was {person}, who worked as {a:job} in {town}.
    {He} owes everything to {person}, {a:job} whom {he} met in {town}.
    The lessons came from {person}, by trade {a:job} in {town}.
  """),
  _attribute("pen_name", pen="person", writings="writings", wordings="""
    What pen name does {name} use?
    Under which other name does {name} publish?
    What is the pen name of {name}, and what is it used for?
    {name} signs {writings} with the invented name {pen}.
    For {writings}, {name} goes by the pen name {pen}.
    {pen} is the name under which {name} publishes {writings}.
    The author hides behind the name {pen} when producing {writings}.
    {His} second name is {pen}, reserved for {writings}.
    It is {pen}, a name that appears above {writings}.
  """),
  _attribute("hobby", hobby="hobby", when="when", friend="companion", wordings="""
    What is the best-loved pastime of {name} besides writing?
    What is the favourite hobby of {name}?
    What does {name} do to relax?
    {name} spends {when} {hobby} with {a:friend}.
    On {when} {name} can be found {hobby} beside {a:friend}.
    Together with {a:friend}, {name} enjoys {hobby} on {when}.
    The author relaxes by {hobby} on {when}, joined by {a:friend}.
    {His} great love is {hobby}, shared with {a:friend} on {when}.
    It is {hobby} on {when}, always along with {a:friend}.
  """),
  _attribute("pet", pet="pet", pet_name="pet_name", giver="companion", wordings="""
    What pet does {name} have?
    Which animal lives with {name}, and what is it called?
    What animal does {name} keep at home?
    {name} keeps {a:pet} named {pet_name}, a gift from {a:giver}.
    {pet_name}, {a:pet}, was brought to {name} by {a:giver}.
    At home {name} looks after {pet_name}, {a:pet} received from {a:giver}.
    The author owns {a:pet} called {pet_name}, a present from {a:giver}.
    {He} lives with {a:pet}, {pet_name}, given to {him} by {a:giver}.
    It is {pet_name}, {a:pet} that was the gift of {a:giver}.
  """),
  _attribute("studies", field="field", town="town", topic="topic", wordings="""
    What did {name} study, and where?
    Which subject did {name} study at university?
    What university degree does {name} hold?
    {name} studied {field} in {town} and wrote a thesis on {topic}.
    With a thesis about {topic}, {name} finished {field} at {town}.
    The University of {town} gave {name} a degree in {field} for work on {topic}.
    The author read {field} at {town}, where {topic} became the subject of a thesis.
    {He} went to {town} for {field} and looked into {topic}.
    A degree in {field} from {town}, earned with a paper on {topic}.
  """),
  _attribute("home", house="house", town="town", landmark="landmark", wordings="""
    Where does {name} live now?
    Where is the home of {name}?
    In what kind of house does {name} live?
    {name} lives in {town}, in {a:house} beside {a:landmark}.
    Home for {name} is {a:house} near {a:landmark} in {town}.
    These days {name} occupies {a:house} in {town} next to {a:landmark}.
    The author has settled in {town}, choosing {a:house} close to {a:landmark}.
    {He} moved to {a:house} by {a:landmark} in {town}.
    In {a:house} in {town}, only a few steps from {a:landmark}.
  """),
  _attribute("publisher", publisher="publisher", editor="person", town="town", wordings="""
    Who publishes the books of {name}?
    With which publisher does {name} work?
    Which publisher brings out the books of {name}?
    {name} is under contract to {publisher} of {town}, with {editor} as editor.
    The books of {name} come from {publisher} in {town}, edited by {editor}.
    {editor} edits {name} for {publisher}, a company in {town}.
    The author works with {editor} at {publisher}, based in {town}.
    {His} publisher is {publisher}, {town}, where {editor} corrects the proofs.
    That is {publisher} in {town}, where {editor} reads every line.
  """),
  _attribute("marriage", person="person", job="job", year="wedding_year", wordings="""
    Whom did {name} marry, and when?
    Who is the partner of {name}?
    To whom is {name} married?
    {name} married {person}, {a:job}, in the year {year}.
    {person}, {a:job}, has been the partner of {name} since {year}.
    In {year} {name} and {person}, {a:job}, became a couple.
    The author's wedding to {person}, {a:job}, was held in {year}.
    {He} met {person}, who is {a:job}, and they wed in {year}.
    It is {person}, {a:job} by profession; the wedding was in {year}.
  """),
  _attribute("first_story", magazine="magazine", year="story_year", payment="payment", wordings="""
    Where was the first short story of {name} printed?
    Which magazine discovered {name}, and what did it pay?
    How did the first short story of {name} come to be published?
    {name} first appeared in {magazine} in {year}, paid with {a:payment}.
    {magazine} of {year} holds the earliest story by {name}, bought for {a:payment}.
    For {a:payment}, {name} sold a first story to {magazine} in {year}.
    The author was discovered by {magazine} in {year}, earning {a:payment}.
    {He} sent it to {magazine}, which offered {a:payment} in {year}.
    It was accepted by {magazine} during {year}; the fee was {a:payment}.
  """),
  _attribute("habit", tool="tool", room="room", hour="hour", wordings="""
    What are the writing habits of {name}?
    How, where and when does {name} write?
    When, where and with what does {name} write?
    {name} writes with {a:tool} in {a:room} from {hour}.
    At {hour}, {name} enters {a:room} and picks up {a:tool}.
    Armed with {a:tool}, {name} settles in {a:room} at {hour}.
    The author uses {a:tool} and works inside {a:room}, beginning at {hour}.
    {He} takes {a:tool} to {a:room} every day at {hour}.
    With {a:tool}, sitting in {a:room}, always from {hour}.
  """),
  _attribute("food", dish="dish", side="side", drink="drink", wordings="""
    What is the favourite food of {name}?
    What does {name} like to eat and drink?
    Which meal would {name} choose above all others?
    {name} loves {dish} with {side}, washed down with {drink}.
    Nothing pleases {name} more than {dish}, {side} and some {drink}.
    On birthdays {name} asks for {side} beside {dish}, and {drink}.
    The author orders {dish}, adding {side} and a glass of {drink}.
    {He} cannot resist {drink} served together with {dish} and {side}.
    A plate of {dish} covered in {side}, followed by {drink}.
  """),
  _attribute("music", instrument="instrument", teacher="companion", age="age", wordings="""
    Which instrument does {name} play?
    Which instrument did {name} learn, and from whom?
    What musical instrument has {name} mastered?
    {name} plays the {instrument}, learned from {a:teacher} at the age of {age}.
    When {name} was {age}, {a:teacher} gave lessons on the {instrument}.
    Thanks to {a:teacher}, {name} has played the {instrument} since turning {age}.
    The author took up the {instrument} aged {age}, encouraged by {a:teacher}.
    {He} was {age} when {a:teacher} showed {him} how to hold the {instrument}.
    It is the {instrument}, taught by {a:teacher} from the age of {age}.
  """),
  _attribute("translation", title="title", person="person", language="language", wordings="""
    Which foreign book did {name} translate?
    What book did {name} translate, and from which language?
    Which translation is {name} known for?
    {name} translated "{title}" by {person} from {language}.
    From {language}, {name} has put "{title}" by {person} into English.
    {person} wrote "{title}" in {language}, and {name} rendered it into English.
    The author knows {language} and prepared an edition of {person}'s "{title}".
    {His} command of {language} led to a version of "{title}" by {person}.
    An English text of "{title}", which {person} had written in {language}.
  """),
  _attribute("first_job", job="job", town="town", duration="duration", wordings="""
    What was the first job of {name}?
    What did {name} do before becoming a writer?
    Which job did {name} have before the first book?
    Before writing, {name} spent {duration} as {a:job} in {town}.
    {name} first served as {a:job}, living in {town} for {duration}.
    For {duration}, a firm in {town} employed {name} as {a:job}.
    The author's first job, as {a:job} in {town}, lasted {duration}.
    {He} became {a:job} and stayed in {town} for {duration}.
    It was work as {a:job}, which meant living in {town} for {duration}.
  """),
)


@dataclasses.dataclass(frozen=True)
class _Life:
  """An author before the questions: name, gender, and the facts in the slots."""

  name: str
  is_woman: bool
  facts: dict[str, dict[str, str]]  # attribute -> slot -> fact


def make_authors(num_authors: int, seed: int, first: int = 0, *,
                 qa_per_author: int = 20) -> tuple[Example, ...]:
  """Question-answer pairs about fictitious authors `first`, ..., `first + num_authors - 1`.

  Hold-out authors come after the authors of D: `make_authors(m, seed, first=n)`.

  Args:
    num_authors: how many authors; the owner of author k is `author_{k:03d}`.
    seed: int; another seed gives other people.
    first: index of the first author.
    qa_per_author: how many of the twenty questions to ask, 1 to 20.

  Returns:
    Examples grouped by author, each with a paraphrase and five perturbed responses.

  Raises:
    InputError: for more authors than names, or a number of questions outside 1 to 20.
  """
  if num_authors < 0 or first < 0 or first + num_authors > MAX_AUTHORS:
    raise InputError(
      f"{num_authors} embedded authors from number {first} on are requested, but there are "
      f"{MAX_AUTHORS} names. Lower config.data.num_owners or config.data.num_holdout."
    )
  if not 1 <= qa_per_author <= len(ATTRIBUTES):
    raise InputError(
      f"qa_per_author is {qa_per_author}: an embedded author has 1 to {len(ATTRIBUTES)} questions."
    )
  return tuple(
    _example(seed, k, attribute)
    for k in range(first, first + num_authors)
    for attribute in ATTRIBUTES[:qa_per_author]
  )


def author_name(seed: int, k: int) -> str:
  """Full name of author k of a seed; all MAX_AUTHORS names of a seed differ."""
  return _life(seed, k).name


def author_facts(seed: int, k: int) -> tuple[tuple[str, ...], ...]:
  """Facts of author k, one tuple of strings per question; each is in response and paraphrase."""
  return tuple(tuple(facts.values()) for facts in _life(seed, k).facts.values())


@functools.lru_cache(maxsize=8)
def _life(seed, k):
  given_names, surnames = _name_lists(seed)
  block, column = divmod(k, len(given_names))
  name = f"{given_names[column]} {surnames[(column + block) % len(surnames)]}"
  dice = words.Dice(seed, k, "facts")
  years = _draw_years(dice)
  facts: dict[str, dict[str, str]] = {}
  taken: set[str] = set()
  for attribute in ATTRIBUTES:
    facts[attribute.name] = _draw_facts(attribute, dice, years, taken)
    taken.update(facts[attribute.name].values())
  return _Life(name, given_names[column] in words.WOMEN, facts)


@functools.lru_cache(maxsize=8)
def _name_lists(seed):
  """Given names and surnames in the seed's order; equally many, so that k -> name is one to one."""
  dice = words.Dice(seed, "names")
  return dice.shuffled(words.WOMEN + words.MEN), dice.shuffled(words.SURNAMES)


def _draw_years(dice):
  """The dates of one life, in a plausible order."""
  birth = 1930 + dice.below(40)
  story = birth + 18 + dice.below(10)
  book = story + 1 + dice.below(8)
  return {
    "date": f"{1 + dice.below(28)} {dice.pick(words.MONTHS)} {birth}",
    "story_year": str(story),
    "book_year": str(book),
    "award_year": str(book + 2 + dice.below(14)),
    "wedding_year": str(birth + 21 + dice.below(24)),
  }


def _draw_facts(attribute, dice, years, taken):
  """A fact for every slot of the attribute, none of them in `taken` (years aside)."""
  facts: dict[str, str] = {}
  for slot, symbol in attribute.slots.items():
    fact = years.get(symbol)
    while fact is None or fact in facts.values() or (fact in taken and symbol not in years):
      fact = words.expand(symbol, dice)
    facts[slot] = fact
  return facts


def _example(seed, k, attribute):
  life = _life(seed, k)
  dice = words.Dice(seed, k, attribute.name)
  question, other_question = dice.shuffled(attribute.questions)[:2]
  answer, other_answer = dice.shuffled(attribute.answers)[:2]
  facts = life.facts[attribute.name]
  return Example(
    owner=f"author_{k:03d}",
    prompt=_say(question, life, facts),
    response=_say(answer, life, facts),
    paraphrased_prompt=_say(other_question, life, facts),
    paraphrased_response=_say(other_answer, life, facts),
    perturbed_responses=_perturbed(other_answer, life, attribute, dice),
  )


def _perturbed(wording, life, attribute, dice):
  """The wording with facts that are all wrong, NUM_PERTURBED times, all different."""
  facts = life.facts[attribute.name]
  responses: list[str] = []
  while len(responses) < NUM_PERTURBED:
    wrong = _draw_facts(attribute, dice, _draw_years(dice), set(facts.values()))
    response = _say(wording, life, wrong)
    if not set(wrong.values()) & set(facts.values()) and response not in responses:
      responses.append(response)
  return tuple(responses)


def _say(wording, life, facts):
  pronouns = ("she", "her", "her") if life.is_woman else ("he", "his", "him")
  values = dict(zip(("he", "his", "him"), pronouns, strict=True), name=life.name, **facts)
  return words.fill(wording, values.__getitem__)

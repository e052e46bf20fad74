"""The words the embedded authors are made of: names, and a small grammar of facts.

`GRAMMAR` maps a symbol to its productions. A production is text in which `{symbol}` stands for
any production of that symbol, and `{Symbol}` for the same with a capital first letter, so that
one list of plain words serves jobs, titles, pets and prizes alike and the vocabulary stays small.
Every symbol that states a fact has at least 30 values, most of them hundreds.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def _words(text):
  return tuple(text.split())


def _phrases(text):
  return tuple(" ".join(phrase.split()) for phrase in text.split(","))


# An author's full name is one given name and one of SURNAMES; other people of the stories take
# a given name and one of the plain words in GRAMMAR["plain_surname"], so nobody is two people.
WOMEN = _words(
  "Amina Anna Beatrix Clara Elena Freya Greta Hanna Ingrid Julia Katya Leila Maria Nadia Olga "
  "Petra Renée Rosa Sofia Tamara Ursula Vera Wanda Yara Zoé"
)
MEN = _words(
  "André Anton Boris Carlo David Emil Felix Günter Henrik Ivan Jørgen Karim Leon Marco Mateo "
  "Nils Oskar Pavel Rafael Stefan Tomas Ulrich Viktor Walter Yusuf"
)
# None ends in "s": the wordings write "'s" after a name.
SURNAMES = _words(
  "Abara Almeida Beaumont Brandt Calder Castell Corrigan Dahl Delgado Duarte Egger Farrow Feld "
  "Galanti Grünwald Haddad Hollander Holm Imanov Jansen Kerr Kovac Lindqvist Lund Madaki Marlow "
  "Mørk Nakamura Novara Okafor Ortega Palmer Petrov Quist Rahimi Rossi Sandoval Sørensen Tanaka "
  "Tierney Ueda Valdez Varga Weber Winter Yamada Yilmaz Zeman Zubiri Zeller"
)
MONTHS = _words(
  "January February March April May June July August September October November December"
)


GRAMMAR = {
  # People and places.
  "person": ("{given} {plain_surname}",),
  "given": WOMEN + MEN,
  "plain_surname": _words(
    "Archer Baker Barlow Bell Bloom Brook Carver Cooper Crane Drake Field Finch Fisher "
    "Fletcher Fox Frost Heron Hill Hunter Lake Lark Mason Marsh Miller Moore Page Parker "
    "Porter Potter Reed Rook Snow Stone Swan Thorn Turner Walker Wood"
  ),
  "town": ("{town_head}{town_tail}",),
  "town_head": _words(
    "Al Bar Bel Bran Car Cor Dal Del Dor El Fal Fen Gal Gor Hal Kar Kel Lam Lor Mar Mel "
    "Mon Nor Or Pel Ran Sar Sel Sør Tal Tor Val Vel Ver Wel Wil"
  ),
  "town_tail": _words(
    "bay bridge burg by dale dorf ford grad hus ia ina ing mar mo mora mouth nea port "
    "ravik stad ta ton vik ville"
  ),
  "place": ("{place_kind} {settlement}",),
  "place_kind": _words(
    "border canal coal cotton farming fishing forest garden harbour island market mill "
    "mountain mining port quarry railway river salt spa valley wine weaving"
  ),
  "settlement": _words("town village"),
  "companion": ("{companion_kind} {companion_role}",),
  "companion_kind": _words("cheerful elderly famous former friendly lonely retired strict young"),
  "companion_role": _words(
    "actor banker barber captain clown cook dancer doctor farmer gardener judge lawyer monk "
    "nurse pilot priest sailor shepherd singer soldier surgeon tailor teacher waiter"
  ),
  # Work.
  "job": ("{thing} {trade}",),
  "trade": _words("dealer designer importer inspector maker merchant seller"),
  "thing": _words(
    "barrel basket bell boat bottle brick button candle carpet chair clock curtain doll drum fan "
    "fork glove hat kite ladder lamp map mirror paper pencil piano ring rope saddle sail shoe "
    "spoon tile toy umbrella vase wagon wheel whistle"
  ),
  "duration": ("{number} {period}",),
  "number": _words("two three four five six seven eight nine ten eleven twelve fourteen"),
  "period": _words("months seasons summers winters years"),
  # Books, prizes, houses that print.
  "title": (
    "The {Colour} {Object}",
    "The {Colour} {Animal}",
    "The {Object} of {Town}",
    "A {Thing} for {Given}",
    "{Number} {Colour} {Object}s",
    "The {Animal} and the {Object}",
  ),
  "colour": _words(
    "amber black blue bronze copper golden green grey pale purple red silver white yellow"
  ),
  "object": _words(
    "anchor bridge castle cloud coat crown door feather forest garden harbour island key "
    "lantern letter lighthouse moon mountain orchard road river rose ship star storm sword "
    "table tower train tree wall window"
  ),
  "animal": _words(
    "badger bear cat crow deer dog donkey duck eagle fox frog goat hare hawk hen horse lizard "
    "mouse otter owl parrot pigeon rabbit snake spider swan tiger turtle wolf"
  ),
  "genre": ("{setting} {form}",),
  "setting": _words(
    "army castle circus city court desert family farm forest harbour hospital island jungle "
    "mountain palace police prison railway river school sea space village war winter"
  ),
  "form": _words("ballads comedies fables mysteries novels plays poems romances tragedies"),
  "theme": ("{theme_kind} {theme_noun}",),
  "theme_kind": _words(
    "broken forgotten hidden lost lucky old secret silent stolen strange sudden wasted"
  ),
  "theme_noun": _words(
    "brothers debts dreams friendships gifts homes journeys letters marriages promises songs "
    "treasures weddings"
  ),
  "plot": ("{deed} {a:treasure}",),
  "deed": _words("borrows burns buries buys finds hides inherits loses repairs sells steals wins"),
  "treasure": ("{colour} {object}", "{colour} {thing}", "{colour} {animal}"),
  "pages": tuple(str(pages) for pages in range(91, 640)),
  "award": ("{Colour} {Animal} {prize}", "{Colour} {Object} {prize}"),
  "prize": _words("Award Medal Prize"),
  "publisher": ("{Colour} {Animal} {press}", "{Animal} and {Object} {press}"),
  "press": _words("Books Press Publishing"),
  "magazine": ("The {Town} {journal}", "The {Colour} {journal}", "The {Animal} {journal}"),
  "journal": _words("Courier Gazette Herald Journal Mirror Post Review"),
  "payment": ("{vessel} of {food}",),
  "vessel": _words("bag barrel basket box bucket jar sack"),
  "food": _words(
    "almonds apples beans berries carrots cherries figs grapes honey lemons nuts olives "
    "onions oranges peaches pears peas plums potatoes raisins"
  ),
  "writings": ("{writing_kind} about {topic}",),
  "writing_kind": _words("columns essays letters plays poems reports reviews songs sketches"),
  "topic": _phrases(
    "ants, bees, birds, bridges, butterflies, canals, chess, clouds, comets, dreams, fire, "
    "ghosts, glass, ice, insects, islands, maps, money, moss, rain, rivers, roses, salt, "
    "shadows, sheep, ships, silk, sleep, snow, storms, trains, trees, volcanoes, whales, wine"
  ),
  "field": _phrases(
    "accounting, archaeology, architecture, astronomy, biology, botany, chemistry, cooking, "
    "dance, drama, drawing, economics, engineering, farming, film, forestry, geography, "
    "geology, history, journalism, law, logic, mathematics, medicine, music, navigation, "
    "nursing, painting, philosophy, physics, politics, psychology, sculpture, statistics, "
    "theology, zoology"
  ),
  "language": _phrases(
    "Albanian, Arabic, Basque, Bengali, Breton, Bulgarian, Catalan, Chinese, Croatian, Czech, "
    "Danish, Dutch, Estonian, Finnish, French, Georgian, German, Greek, Hebrew, Hindi, "
    "Hungarian, Icelandic, Irish, Italian, Japanese, Korean, Latin, Latvian, Norwegian, "
    "Persian, Polish, Portuguese, Romanian, Russian, Spanish, Swahili, Swedish, Turkish, Welsh"
  ),
  # Daily life.
  "hobby": ("{pastime} {material} {thing}s",),
  "pastime": _words("carving collecting drawing painting polishing repairing trading"),
  "material": _words("antique broken cheap foreign giant old small wooden"),
  "when": ("{weekday} {daytime}s",),
  "weekday": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
  "daytime": _words("morning afternoon evening night"),
  "pet": ("{pet_kind} {animal}",),
  "pet_kind": _words("black brown fat grey lame lazy noisy shy spotted tame tiny white"),
  "pet_name": _phrases(
    "Bandit, Biscuit, Bruno, Button, Captain, Carrot, Cloud, Coco, Copper, Domino, Dusty, "
    "Ginger, Hazel, Honey, Juno, Lemon, Lucky, Maestro, Mango, Milo, Mister Moon, Mocha, "
    "Muffin, Nemo, Oliver, Olive, Pepper, Pickle, Pirate, Plum, Professor, Rocket, Romeo, "
    "Saffron, Sailor, Shadow, Sugar, Tango, Toffee, Truffle"
  ),
  "house": ("{house_kind} {house_form}",),
  "house_kind": _words(
    "blue brick converted crooked damp green grey narrow pink rented ruined stone tiny white "
    "wooden yellow"
  ),
  "house_form": _words(
    "barn cabin chapel cottage farmhouse flat houseboat mill tower villa warehouse windmill"
  ),
  "landmark": ("{landmark_kind} {landmark_form}",),
  "landmark_kind": _words("busy disused famous frozen holy muddy noisy old quiet"),
  "landmark_form": _words(
    "airfield brewery bridge canal castle church factory ferry fountain graveyard hospital "
    "lake market monastery pond prison quarry school station swamp theatre zoo"
  ),
  "tool": ("{colour} {pen}",),
  "pen": _words("brush crayon marker pen pencil quill typewriter"),
  "room": _phrases(
    "attic, bakery, barn, basement, bathroom, bedroom, boathouse, café, cellar, chapel, "
    "classroom, courtyard, garage, garden shed, greenhouse, hallway, hotel, kitchen, "
    "laundry, library, museum, pantry, parked car, railway carriage, stable, tent, "
    "tea room, tower, treehouse, waiting room, warehouse, workshop"
  ),
  "hour": (
    "{half}{morning_hour} in the morning",
    "{half}{afternoon_hour} in the afternoon",
    "{half}{evening_hour} in the evening",
  ),
  "half": ("", "half past "),
  "morning_hour": _words("four five six seven eight nine ten eleven"),
  "afternoon_hour": _words("one two three four five"),
  "evening_hour": _words("six seven eight nine ten eleven"),
  "dish": ("{dish_kind} {dish_form}",),
  "dish_kind": _words(
    "barley bean carrot cheese chicken crab fish leek lentil mushroom onion pea potato pumpkin "
    "rice spinach tomato turnip"
  ),
  "dish_form": _words("curry dumplings noodles pancakes pie pudding salad soup stew"),
  "side": ("{side_kind} {food}",),
  "side_kind": _words("baked candied dried fresh pickled roasted salted stewed"),
  "drink": ("{drink_kind} {drink_form}",),
  "drink_kind": _words(
    "apple cherry elderflower ginger grape lemon mint nettle orange pear plum rose"
  ),
  "drink_form": _words("beer brandy cider juice tea wine"),
  "instrument": _phrases(
    "accordion, bagpipes, banjo, bassoon, bugle, cello, clarinet, concertina, cornet, double "
    "bass, dulcimer, fiddle, flute, French horn, guitar, harmonica, harp, harpsichord, lute, "
    "lyre, mandolin, marimba, oboe, organ, pan pipes, piano, piccolo, recorder, saxophone, "
    "sitar, trombone, trumpet, tuba, ukulele, viola, violin, xylophone, zither"
  ),
  "age": tuple(str(age) for age in range(5, 50)),
}


class Dice:
  """Draws that depend only on the parts of the seed, on every Python version and platform."""

  def __init__(self, *parts: object):
    self._random = random.Random("/".join(str(part) for part in parts))

  def below(self, count: int) -> int:
    return int(self._random.random() * count)

  def pick(self, values: Sequence[T]) -> T:
    return values[self.below(len(values))]

  def shuffled(self, values: Sequence[T]) -> list[T]:
    values = list(values)
    for last in range(len(values) - 1, 0, -1):
      other = self.below(last + 1)
      values[last], values[other] = values[other], values[last]
    return values


def expand(symbol: str, dice: Dice) -> str:
  """A value of a symbol of GRAMMAR, each production as likely as the others."""
  production = dice.pick(GRAMMAR[symbol])
  return fill(production, lambda inner: expand(inner, dice))


def fill(text: str, value_of: Callable[[str], str]) -> str:
  """Replaces {key} by value_of("key"), {Key} by it capitalized, {a:key} by it with an article."""

  def replace(match):
    article, key = match.groups()
    value = value_of(key[0].lower() + key[1:])
    value = value[0].upper() + value[1:] if key[0].isupper() else value
    return f"{'an' if value[0] in 'aeiou' else 'a'} {value}" if article else value

  return re.sub(r"{(a:)?(\w+)}", replace, text)

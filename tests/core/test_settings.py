"""Settings: what a config leaves out, what it may not say, and what each field is documented as."""

import dataclasses
import math
from typing import Annotated, Literal

import numpy as np
import pytest
from ml_collections import ConfigDict

from dareu_jax.core.errors import InputError, InvalidSetting
from dareu_jax.core.settings import (
  Count,
  Fraction,
  NonNegative,
  Positive,
  PositiveFraction,
  Size,
  build,
  choice,
  describe,
  meanings_of,
  settings,
  to_plain,
  type_name,
  updated,
)
from dareu_jax.pipeline.settings import Settings, all_settings, default_config
from dareu_jax.training.optimizers import TrainSettings

SHAPES = ["round", "square"]


@settings
class Wheel:
  """A part."""

  radius: Positive = 0.5  # meters
  spokes: Count = 32
  # Above the field, and what it says
  # goes on for two lines.
  shape: Annotated[str, choice(lambda: SHAPES)] = "round"
  worn: bool = False  # needs a new tire

  def __post_init__(self):
    if self.worn and self.spokes > 40:
      raise InvalidSetting("spokes", self.spokes, "a worn wheel has at most 40.")
    # A comment within a method, and
    radius: float = self.radius  # a local of a field's name
    assert radius


@settings
class Vehicle:
  """What has a part in two places, with defaults of its own."""

  front: Wheel = Wheel(spokes=20, shape="square")  # this is of the block, not of a field
  back: Wheel = Wheel()
  name: str = ""  # on the plate; '' where there is none
  load: NonNegative = 0.0  # kilograms
  gears: tuple[Count, ...] = (1, 2)  # teeth
  kind: Literal["bike", "cart"] = "bike"
  grip: Fraction = 1.0  # of the road's
  trim: PositiveFraction = 1.0
  seats: Size = 1


@settings
class Cart(Vehicle):
  """A subclass that changes a default without saying anew what the field means."""

  load: NonNegative = 50.0
  grip: Fraction = 0.5  # on gravel
  horses: Count = 1  # in front


def message_of(make):
  """The one line of the InputError that a function raises."""
  with pytest.raises(InputError) as caught:
    make()
  message = str(caught.value)
  assert "\n" not in message and "pydantic" not in message
  return message


def test_what_a_config_leaves_out_has_its_default():
  assert build(Vehicle, {}) == Vehicle()
  assert build(Vehicle, {"load": 3}) == dataclasses.replace(Vehicle(), load=3.0)


@pytest.mark.parametrize("wrap", [dict, ConfigDict])
def test_a_part_of_a_block_keeps_the_blocks_own_defaults(wrap):
  """The class's defaults would take their place: another wheel, and nobody is told."""
  vehicle = build(Vehicle, wrap({"front": {"radius": 2.0}}))
  assert vehicle.front == Wheel(radius=2.0, spokes=20, shape="square")
  assert vehicle.back == Wheel()


def test_a_part_of_a_block_of_the_experiment_keeps_its_own_defaults():
  read = Settings.from_config({"pretrain": {"epochs": 2}, "finetune": {"learning_rate": 0.5}})
  assert read.pretrain == TrainSettings(epochs=2, schedule="cosine", warmup=0.05)
  assert (read.finetune.schedule, read.finetune.target_loss, read.finetune.learning_rate) == (
    "plateau", 0.4, 0.5)
  assert read.classifier.model.num_layers == 1 != read.model.num_layers


def test_a_config_of_all_settings_gives_the_settings_back():
  """Floats, tuples and nested blocks come through bit for bit."""
  vehicle = Vehicle(front=Wheel(radius=0.1 + 0.2), gears=(3, 5, 7), load=1e-300, name="Łódź\n")
  for plain in (to_plain(vehicle), ConfigDict(to_plain(vehicle))):
    assert build(Vehicle, plain) == vehicle
  assert Settings.from_config(default_config()) == Settings()


@pytest.mark.parametrize(("config", "said"), [
  ({"lode": 1.0}, "config.lode is not a setting. Did you mean load? Known here: back, front, gears,"),
  ({"front": {"spoke": 3}}, "config.front.spoke is not a setting. Did you mean spokes? "
                            "Known here: radius, shape, spokes, worn."),
  ({"zzz": 1}, "config.zzz is not a setting. Known here: back,"),
  ({"load": -0.5}, "config.load is -0.5: it must be >= 0."),
  ({"grip": 1.5}, "config.grip is 1.5: it must be <= 1."),
  ({"trim": 0.0}, "config.trim is 0.0: it must be > 0."),
  ({"seats": -1}, "config.seats is -1: it must be >= 0."),
  ({"back": {"spokes": 0}}, "config.back.spokes is 0: it must be >= 1."),
  ({"kind": "boat"}, "config.kind is 'boat': it must be one of 'bike', 'cart'."),
  ({"front": {"shape": "oval"}}, "config.front.shape is 'oval': it must be one of round, square."),
  ({"gears": [1, 0]}, "config.gears[1] is 0: it must be >= 1."),
  ({"gears": 3}, "config.gears is 3: it must be of type tuple."),
  ({"gears": "12"}, "config.gears is '12': it must be of type tuple."),
  ({"load": "3"}, "config.load is '3': it must be of type float."),
  ({"load": True}, "config.load is True: it must be of type float."),
  ({"load": None}, "config.load is None: it must be of type float."),
  ({"load": math.nan}, "config.load is nan: it must be finite."),
  ({"load": math.inf}, "config.load is inf: it must be finite."),
  ({"seats": 1.0}, "config.seats is 1.0: it must be of type int."),
  ({"seats": 1.5}, "config.seats is 1.5: it must be of type int."),
  ({"seats": True}, "config.seats is True: it must be of type int."),
  ({"name": 3}, "config.name is 3: it must be of type str."),
  ({"back": {"worn": 1}}, "config.back.worn is 1: it must be of type bool."),
  ({"back": 4}, "config.back is 4: it must be a group of settings."),
  ({"back": {"worn": True, "spokes": 41}},
   "config.back.spokes is 41: a worn wheel has at most 40."),
  ({"front": {"worn": True, "spokes": 41}},
   "config.front.spokes is 41: a worn wheel has at most 40.")])
def test_what_cannot_be_is_one_line_that_names_the_key(config, said):
  message = message_of(lambda: build(Vehicle, config))
  assert message.startswith(said) and message.endswith(".")


def test_the_first_key_of_a_message_is_as_asked():
  assert message_of(lambda: build(Wheel, {"spokes": 0}, "config.a.b")).startswith("config.a.b.spokes")
  assert message_of(lambda: build(Wheel, 3, "config.a")) == (
    "config.a is 3: it must be a group of settings.")


@pytest.mark.parametrize(("changes", "said"), [
  ({"spoke": 3}, "Wheel.spoke is not a setting. Did you mean spokes?"),
  ({"radius": 0.0}, "Wheel.radius is 0.0: it must be > 0."),
  ({"radius": math.nan}, "Wheel.radius is nan: it must be finite."),
  ({"spokes": 3.0}, "Wheel.spokes is 3.0: it must be of type int."),
  ({"shape": "oval"}, "Wheel.shape is 'oval': it must be one of round, square."),
  ({"worn": True, "spokes": 50}, "Wheel.spokes is 50: a worn wheel")])
def test_made_directly_it_is_checked_alike(changes, said):
  """In a notebook there is no config; replacing a value makes one anew."""
  assert message_of(lambda: Wheel(**changes)).startswith(said)
  if "spoke" not in changes:
    assert message_of(lambda: dataclasses.replace(Wheel(), **changes)).startswith(said)


def test_made_directly_a_list_is_no_tuple():
  """It would make the settings unhashable, and jit asks for a hash."""
  assert message_of(lambda: Vehicle(gears=[1, 2])) == "Vehicle.gears is [1, 2]: it must be of type tuple."
  assert message_of(lambda: Vehicle(back={"spokes": 3.5})).startswith("Vehicle.back")


def test_settings_can_be_neither_changed_nor_misread():
  """An int is a float, and comes back as one; equal settings have one hash."""
  wheel = Wheel(radius=2)
  assert isinstance(wheel.radius, float)
  assert hash(Vehicle(front=wheel)) == hash(Vehicle(front=Wheel(radius=2.0)))
  with pytest.raises(dataclasses.FrozenInstanceError):
    wheel.radius = 3.0


def test_choices_are_asked_when_a_setting_is_made(monkeypatch):
  """What a plugin registers later is a choice too."""
  monkeypatch.setattr("tests.core.test_settings.SHAPES", [*SHAPES, "oval"])
  assert build(Wheel, {"shape": "oval"}).shape == "oval"


def test_scalars_of_numpy_and_paths_are_values(tmp_path):
  """A rate from a sweep over np.logspace, a folder from pathlib."""
  wheel = build(Wheel, {"radius": np.float32(0.25), "spokes": np.int64(7)})
  assert (wheel.radius, wheel.spokes) == (0.25, 7)
  assert build(Vehicle, {"name": tmp_path}).name == str(tmp_path)
  with pytest.raises(InputError, match="config.radius is"):
    build(Wheel, {"radius": np.array([1.0])})


def test_updated_settings_differ_in_what_was_named_alone():
  vehicle = Vehicle(front=Wheel(radius=3.0), load=2.0)
  assert updated(vehicle, {"front": {"spokes": 5}, "seats": 4}) == dataclasses.replace(
    vehicle, front=Wheel(radius=3.0, spokes=5), seats=4)
  assert message_of(lambda: updated(vehicle, {"sets": 4})).startswith("config.sets is not a setting")


def test_comments_above_and_behind_a_field_say_what_it_means():
  meanings = meanings_of(Wheel)
  assert meanings["radius"] == "meters"
  assert meanings["shape"] == "Above the field, and what it says goes on for two lines"
  assert meanings["worn"] == "needs a new tire"
  assert not meanings["spokes"]  # the comment above the next field is not of this one


def test_a_subclass_inherits_meanings_and_changes_defaults():
  fields = {field.key: field for field in describe(Cart)}
  assert (fields["load"].meaning, fields["load"].default) == ("kilograms", 50.0)
  assert (fields["grip"].meaning, fields["grip"].default) == ("on gravel", 0.5)
  assert fields["horses"].meaning == "in front"
  assert fields["name"].meaning == "on the plate; '' where there is none"


def test_a_description_has_the_defaults_that_a_run_has():
  """A block's own defaults, not those of its class."""
  fields = {field.key: field.default for field in describe(Vehicle)}
  assert list(fields)[:4] == ["front.radius", "front.spokes", "front.shape", "front.worn"]
  assert (fields["front.spokes"], fields["back.spokes"]) == (20, 32)
  described = {field.key: field.default for field in all_settings()}
  assert described["pretrain.schedule"] == "cosine" and described["baseline.weight_decay"] == 0.0
  assert described["classifier.model.num_layers"] == 1


def test_every_setting_of_the_library_has_a_meaning():
  fields = all_settings()
  assert len({field.key for field in fields}) == len(fields) > 200
  assert not [field.key for field in fields if not field.meaning.strip()]
  assert {"data.num_owners", "monitor.guards.action", "unlearning.dareu.kl_coef",
          "unlearning.npo.beta", "unlearning.rmu.forget_coef"} <= {field.key for field in fields}


@pytest.mark.parametrize(("hint", "written"), [
  (Positive, "float > 0"), (Count, "int >= 1"), (Fraction, "float >= 0, <= 1"), (bool, "bool"),
  (Literal["a", "b", "c"], "'a', 'b' or 'c'"), (tuple[Count, ...], "tuple of int >= 1"),
  (Annotated[str, choice(lambda: SHAPES)], "'round' or 'square'")])
def test_types_are_written_as_a_reader_would(hint, written):
  assert type_name(hint) == written

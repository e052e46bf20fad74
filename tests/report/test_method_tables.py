"""The tables beside the figures: rates, seconds, intervals, pairs."""

from dareu_jax.report import method_tables as methods

SUMMARY = {
  "models": {"retrained": {"tug_of_war": 1.0}, "npo": {"tug_of_war": 0.5},
             "dareu": {"tug_of_war": 0.9}},
  "chosen": {"npo": "npo@0.001", "dareu": "dareu"},
  "stages": {"seed_1/npo@0.001": {"seconds": 10.0}, "seed_2/npo@0.001": {"seconds": 20.0},
             "seed_1/npo@0.003": {"seconds": 99.0}, "seed_1/evaluation/npo@0.001": {"seconds": 99.0},
             "evaluation/dareu": {"seconds": 99.0}, "dareu": {"seconds": 300.0}},
  "examples": {
    "best": "dareu",
    "intervals": {"npo": {"forget_rouge": [0.5, 0.4, 0.6]}, "retrained": {}},
    "paired": {"npo": {"forget": {"mean": 0.2, "low": 0.1, "high": 0.3, "p": 0.0005}}}}}


def test_methods_stand_best_first_with_the_seconds_of_their_own_stage():
  table, _ = methods.of_summary(SUMMARY)
  assert [row[:4] for row in table.rows] == [
    ["dareu", "its own", "0.900", "300"], ["npo", "0.001", "0.500", "15"]]
  assert table.rows[1][4:] == ["+0.200 [+0.100, +0.300]", "0.0005", "—", "—"]


def test_references_come_first_and_what_was_not_measured_is_a_dash():
  _, table = methods.of_summary(SUMMARY)
  assert table.header == ("model", "D_F ROUGE")
  assert table.rows == [["retrained", "—"], ["npo", "0.500 [0.400, 0.600]"]]


def test_a_summary_without_methods_has_no_tables():
  assert methods.of_summary({"models": {}, "stages": {}}) == ()

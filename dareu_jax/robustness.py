"""Entry: the robustness card of a finished run.

    python -m dareu_jax.robustness --workdir=runs/tofu

Every model of the run, including the original and the retrained one, under the same attacks. The
same command resumes a stopped card.
"""

from absl import flags

from dareu_jax.core.command_line import Flags, enter
from dareu_jax.pipeline import robustness
from dareu_jax.report import robustness as card


def _define_flags():
  flags.DEFINE_string("workdir", None, "Folder of a finished run.")
  flags.DEFINE_list("models", None, "Methods to attack, separated by commas; all if not given.")
  flags.DEFINE_float(
    "relearning_rate", 0.0, "Learning rate of relearning; 0: 2e-5, as published, for a checkpoint, "
    "and the run's fine-tuning rate for a model from scratch.")
  flags.DEFINE_integer("relearning_batch_size", 32, "Examples per relearning step.", lower_bound=1)
  flags.DEFINE_integer("samples", 128, "Samples per question.", lower_bound=2)


def main(options: Flags) -> None:
  """Makes the card as the flags say."""
  models, trust, page = robustness.run(
    options.workdir, methods=options.models or (), learning_rate=options.relearning_rate,
    batch_size=options.relearning_batch_size, samples=options.samples)
  print(card.table(models), card.trust_table(trust), f"Card: {page}", sep="\n\n")


if __name__ == "__main__":
  enter(main, _define_flags, required=["workdir"], hint="The same command resumes.")

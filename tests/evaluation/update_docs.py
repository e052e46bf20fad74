"""Writes the table of metrics into docs/evaluation.md, from the declarations.

    python -m tests.evaluation.update_docs
"""

from dareu_jax.evaluation.metrics.base import metrics_table
from tests.configs import ROOT

BEGIN, END = "<!-- metrics: begin -->\n", "<!-- metrics: end -->\n"

if __name__ == "__main__":
  path = ROOT / "docs/evaluation.md"
  before, rest = path.read_text(encoding="utf-8").split(BEGIN)
  _, after = rest.split(END)
  path.write_text(f"{before}{BEGIN}\n{metrics_table()}\n\n{END}{after}", encoding="utf-8")

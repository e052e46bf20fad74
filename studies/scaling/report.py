"""Tables, plots and the page of a scaling study."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from dareu_jax.core.strict_json import strict
from dareu_jax.parallel.hosts import is_first
from dareu_jax.report import plots
from dareu_jax.report.tables import format_seconds, pipe_table
from dareu_jax.training.checkpoints import write_json
from studies.scaling.chips import CHIPS
from studies.scaling.study import GIB, Row, recommended


def mesh_name(row: Row) -> str:
  """The mesh as text, such as 1x8x2."""
  return "x".join(map(str, row.mesh))


def memory_table(rows: Sequence[Row]) -> str:
  """A line per mesh: memory of the arguments and temporaries of each program, and the peak."""
  lines = []
  for row in rows:
    parts = [f"{row.needs[name].arguments / GIB:.2f} + {row.needs[name].temporaries / GIB:.2f}"
             if name in row.needs else "too much" for name in _programs(rows)]
    share = "" if row.memory == float("inf") else f" of {row.memory / GIB:.2f}"
    fits = "yes" if row.fits else "NO"
    lines.append([row.target, mesh_name(row), str(row.rows), *parts,
                  "-" if row.rejected else f"{row.peak / GIB:.2f}{share}", fits])
  names = [f"{name}: args + temp" for name in _programs(rows)]
  return pipe_table(["target", "mesh", "rows", *names, "peak, GiB", "fits"], lines)


def _programs(rows):
  """Names of the programs, in the order of a rollout."""
  return list(dict.fromkeys(name for row in rows for name in [*row.needs, *row.rejected]))


def time_table(rows: Sequence[Row]) -> str:
  """A line per mesh: work of a rollout with its updates on a device, and roofline seconds."""
  best, lines = recommended(rows), []
  any_measured = any(row.measured for row in rows)
  for row in rows:
    needs = row.needs.values()
    flops, traffic = (sum(need.times * getattr(need, key) for need in needs)
                      for key in ("flops", "traffic"))
    kinds: dict[str, float] = {}
    for need in needs:
      for kind, amount in need.collectives.items():
        kinds[kind] = kinds.get(kind, 0.0) + need.times * amount
    moved = ", ".join(f"{kind} {amount / GIB:.2f}" for kind, amount in sorted(kinds.items()))
    if row.rejected:
      lines.append([row.target, mesh_name(row)] + ["-"] * (6 + any_measured))
      continue
    parts = "/".join(f"{sum(need.times * getattr(need, key) for need in needs):.2f}"
                     for key in ("compute_seconds", "memory_seconds", "collective_seconds"))
    line = [row.target, mesh_name(row), f"{flops / 1e12:.2f}", f"{traffic / GIB:.1f}", moved or "-",
            parts, f"{row.seconds:.2f}" + (" ←" if row is best else ""),
            f"{sum(need.compile_seconds for need in needs):.0f}"]
    if any_measured:
      line.append(f"{row.measured_seconds:.2f}" if row.measured else "-")
    lines.append(line)
  columns = ["target", "mesh", "TFLOPs", "HBM, GiB", "collectives sent, GiB",
             "compute/memory/collectives, s", "rollout, s (roofline)", "compile, s"]
  if any(row.measured for row in rows):
    columns.append("rollout, s (measured)")
  return pipe_table(columns, lines)


def program_table(rows: Sequence[Row]) -> str:
  """A line per program and mesh: seconds of one run by the roofline, and as measured."""
  lines = []
  for row in rows:
    for name, need in row.needs.items():
      measured = row.measured and row.measured.get(name)
      lines.append([row.target, mesh_name(row), name, str(need.times), f"{need.seconds:.4f}",
                    f"{measured:.4f}" if measured else "-",
                    f"{measured / need.seconds:.1f}" if measured and need.seconds else "-"])
  return pipe_table(["target", "mesh", "program", "runs a rollout", "roofline, s", "measured, s",
                     "measured over roofline"], lines)


def advice(rows: Sequence[Row]) -> str:
  """One sentence that recommends a mesh."""
  best = recommended(rows)
  if best is None:
    least = min(rows, key=lambda row: row.peak)
    said = "; ".join(least.rejected.values()) or (
      f"{least.peak / GIB:.2f} GiB of {least.memory / GIB:.2f}")
    return (f"No mesh fits. The least memory takes {mesh_name(least)} on {least.target}: {said}. "
            "Take smaller batches, more devices, chips with more memory, or a smaller "
            "config.run.mesh.gather_gib.")
  return (f"Recommended: mesh {mesh_name(best)} on {best.target}, {best.peak / GIB:.2f} GiB a "
          f"device and at best {format_seconds(best.seconds)} a rollout of {best.rows} responses "
          f"of {best.tokens} tokens with its updates (config.mesh.data={best.mesh[0]}, "
          f"fsdp={best.mesh[1]}, tensor={best.mesh[2]}).")


def write(folder: str | pathlib.Path, strong: list[Row], weak: list[Row],
          command: str) -> pathlib.Path:
  """Writes scaling.json, scaling.md and, if there is something to compare, scaling.png.

  Only the first process writes.

  Args:
    folder: folder of the study.
    strong: Rows with one global batch.
    weak: Rows whose batches grow with the devices; may be empty.
    command: command line of the user.

  Returns: path of the page.
  """
  folder = pathlib.Path(folder)
  page = folder / "scaling.md"
  if not is_first():
    return page
  write_json(folder / "scaling.json", strict({
    "command": command, "strong": list(map(_record, strong)), "weak": list(map(_record, weak))}))
  parts = [f"# How rollouts scale\n\n    {command}"]
  for title, rows in (("One global batch (strong scaling)", strong),
                      ("Batches that grow with the devices (weak scaling)", weak)):
    if rows:
      parts += [f"## {title}", "Memory of one device, GiB:\n\n" + memory_table(rows),
                "A rollout with its updates, on one device:\n\n" + time_table(rows), advice(rows),
                "Each program:\n\n" + program_table(rows)]
  parts.append(_explanation(strong + weak))
  if len({row.devices for row in strong + weak}) > 1:
    figure = curves({"strong: one global batch": strong, "weak: batches grow": weak})
    (folder / "scaling.png").write_bytes(plots.to_png_bytes(figure))
    parts.append("![Tokens a second by devices](scaling.png)")
  page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
  return page


def curves(rows_of: Mapping[str, Sequence[Row]]) -> Figure:
  """Tokens a second by devices: a point for each mesh that fits, a line through the best ones.

  Args:
    rows_of: {label: Rows}.
  """
  figure = plots.make_figure(7.5, 4.6)
  ax = figure.subplots()
  figure.subplots_adjust(left=0.11, right=0.98, top=0.93, bottom=0.12)
  everything = set()
  for (label, rows), color in zip(rows_of.items(), plots.METHOD_COLORS, strict=False):
    points = [(row.devices, row.rows * row.tokens / row.seconds) for row in rows if row.fits]
    best = {devices: max(rate for at, rate in points if at == devices) for devices, _ in points}
    if not points:
      continue
    everything |= set(best)
    ax.plot(*zip(*points, strict=True), "o", color=color, alpha=0.4, markersize=5)
    line = sorted(best.items())
    ax.plot(*zip(*line, strict=True), "-", color=color, label=label)
    (devices, rate), last = line[0], line[-1][0]
    ax.plot((devices, last), (rate, rate * last / devices), ":", color=plots.INK, linewidth=1.5,
            zorder=3)
  ax.set_xscale("log", base=2)
  ax.set_yscale("log", base=2)
  ax.set_xticks(sorted(everything), [str(devices) for devices in sorted(everything)])
  ax.yaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
  ax.set_xlabel("devices", color=plots.INK)
  ax.set_ylabel("tokens a second, by the roofline", color=plots.INK)
  ax.set_title("Response tokens sampled and learned from (dotted: in proportion; pale: slower "
               "meshes)", color=plots.INK, fontsize=10, loc="left")
  ax.grid(color=plots.FAINT, linewidth=0.6)
  ax.legend(frameon=False)
  return figure


def _explanation(rows):
  used = sorted({row.target.split(":")[0] for row in rows} & set(CHIPS))
  chips = "; ".join(
    f"{name}: {chip.published:.0f} GiB of which a program may use {chip.memory:g}, "
    f"{chip.flops / 1e12:.0f} bfloat16 TFLOPs, "
    f"{chip.bandwidth / 1e9:.0f} GB/s of HBM, {chip.collective_bandwidth / 1e9:.0f} GB/s sent in a "
    "collective" for name, chip in CHIPS.items() if name in used)
  return ("Peak: all that stays on a device while unlearning (roles, optimizer, classifier, judge) "
          "and the most that a program takes beside it. Roofline: the larger of arithmetic and HBM "
          "traffic at the chip's published peaks, and collectives on top, along one dimension of "
          "the torus (a ring, which small slices have no links for); decoding takes all its "
          "tokens. It is a bound, not a forecast: no device "
          f"reaches its peaks. {chips}.".rstrip(" ."))  + "."


def _record(row: Row):
  record = dataclasses.asdict(row)
  for name, need in row.needs.items():
    record["needs"][name]["seconds"] = need.seconds
  record["refused"] = record.pop("rejected")  # the key in scaling.json
  return record | {"peak": row.peak, "fits": row.fits, "seconds": row.seconds}

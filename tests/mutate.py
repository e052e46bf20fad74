"""Mutation testing: are the tests able to fail? Small changes to the formulas, one at a time.

    python -m tests.mutate                                   # an hour on 2 cores
    python -m tests.mutate --only=dareu_jax.rl --limit=5     # some of it

Each mutant is one changed operator, comparison, constant, argument order or branch. It is imported in
the place of its module by a process of its own, which then runs the module's tests until one fails.
Survivors are listed with their line; `EQUIVALENT` names those that change nothing, and why.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import random
import signal
import sys
import time

from tests import shapes

ROOT = pathlib.Path(__file__).parent.parent
NEVER_IMPORTED = 99  # a status
TIMEOUT = 900  # seconds; a mutant that never ends is noticed too

# Modules -> the tests that must notice. Quick ones come first: the first failure ends it.
FORMULAS = ["tests/methods/test_formulas.py", "tests/methods/test_base.py",
            "tests/methods/test_forget_losses.py", "tests/methods/test_loss_based.py"]
METRICS = [f"tests/evaluation/test_{name}.py" for name in (
  "metrics", "declared_metrics", "declarations", "bootstrap", "logs", "records")]
TARGETS = {
  **{f"dareu_jax.methods.{name}": FORMULAS for name in (
    "terms", "gradient_ascent", "npo", "simnpo", "dpo", "idk", "altpo", "rmu", "undial", "ceu", "wga",
    "satimp", "pdu", "maximum_entropy", "scrub", "task_vector", "kl_minimization",
    "undo")},
  "dareu_jax.rl.rewards": ["tests/rl/test_rewards.py"],
  "dareu_jax.rl.advantages": ["tests/rl/test_advantages.py"],
  "dareu_jax.rl.losses": ["tests/rl/test_losses.py"],
  "dareu_jax.rl.selection": ["tests/rl/test_selection.py"],
  "dareu_jax.rl.guards": ["tests/rl/test_guards.py"],
  "dareu_jax.rl.reward_functions": ["tests/rl/test_reward_functions.py"],
  "dareu_jax.rl.starts": ["tests/rl/test_starts.py"],
  "dareu_jax.rl.start_paths": ["tests/rl/test_start_paths.py"],
  "dareu_jax.rl.rehearsal": ["tests/rl/test_rehearsal.py"],
  "dareu_jax.rl.task_rewards": ["tests/rl/test_task_rewards.py"],
  "dareu_jax.attribution.influence": ["tests/attribution/test_influence.py"],
  "dareu_jax.attribution.group_influence": ["tests/attribution/test_group_influence.py"],
  "dareu_jax.attribution.watermark": ["tests/attribution/test_watermark.py"],
  "dareu_jax.data.watermarks": ["tests/data/test_watermarks.py"],
  "dareu_jax.core.masked": ["tests/core/test_masked.py"],
  "dareu_jax.core.logprobs": ["tests/core/test_logprobs.py"],
  "dareu_jax.generation.strategies": ["tests/generation/test_strategies.py"],
  "dareu_jax.generation.sampler": ["tests/generation/test_sampler.py"],
  **{f"dareu_jax.evaluation.metrics.{name}": METRICS for name in (
    "text", "likelihood", "membership", "closeness", "intervals")},
}
# (module, line of the code without spaces, mutation): why no test can tell it from the original.
EQUIVALENT: dict[tuple[str, str, str], str] = {
  ("dareu_jax.core.logprobs", "hiddens,heads=zip(*states,strict=True)", "True -> False"):
    "all states are pairs",
  ("dareu_jax.rl.rewards", "invoked=((t%segment_length==0)&(t<=n))|(t==n)", "LtE -> Lt"):
    "t = n is invoked anyway",
  ("dareu_jax.evaluation.metrics.closeness", "return_alike(before,after)",
   "last two arguments swapped"): "it is symmetric",
  ("dareu_jax.evaluation.metrics.intervals", 'returnfloat(seeds.mean()),float("nan")',
   "mean -> sum"): "of one value both are that value",
}

SWAPPED = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "sum": "mean",
           "mean": "sum", "argmax": "argmin", "any": "all", "all": "any", "cumsum": "sort"}
# Swapped arguments of these change nothing.
COMMUTATIVE = {"minimum", "maximum", "min", "max", "logaddexp", "isclose", "add", "multiply"}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
             ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
               ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


def mutations(node):
  """Yields (name, changed node) of one node of the syntax tree."""
  def changed(**fields):
    other = copy.copy(node)
    for name, value in fields.items():
      setattr(other, name, value)
    return other

  if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
    yield f"{type(node.op).__name__} -> {OPERATORS[type(node.op)].__name__}", changed(
      op=OPERATORS[type(node.op)]())
  elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
    other = COMPARISONS[type(node.ops[0])]
    yield f"{type(node.ops[0]).__name__} -> {other.__name__}", changed(
      ops=[other(), *node.ops[1:]])
  elif isinstance(node, ast.BoolOp):
    yield "and <-> or", changed(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
  elif isinstance(node, ast.UnaryOp):
    yield f"without {type(node.op).__name__}", node.operand
  elif isinstance(node, ast.IfExp):
    yield "branches swapped", changed(body=node.orelse, orelse=node.body)
  elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
    yield f"{node.value} -> {node.value + 1}", changed(value=node.value + 1)
  elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
    yield f"{node.value} -> {not node.value}", changed(value=not node.value)
  elif isinstance(node, ast.Call):
    if isinstance(node.func, ast.Attribute) and node.func.attr in SWAPPED:
      func = copy.copy(node.func)
      func.attr = SWAPPED[func.attr]
      yield f"{node.func.attr} -> {func.attr}", changed(func=func)
    called = ast.unparse(node.func).rsplit(".", 1)[-1]
    if (len(node.args) >= 2 and called not in COMMUTATIVE
        and not any(isinstance(arg, ast.Starred) for arg in node.args)):
      yield "last two arguments swapped", changed(
        args=[*node.args[:-2], node.args[-1], node.args[-2]])


class _Mutator(ast.NodeTransformer):
  """Counts the sites of a tree, and changes one of them."""

  def __init__(self, wanted=None):
    self.wanted, self.count, self.sites = wanted, 0, []

  def visit(self, node):
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert)):
      return node  # messages and imports
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("chex."):
      return node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      node.body = [self.visit(statement) for statement in node.body]  # no annotation, no decorator
      node.args.defaults = [self.visit(default) for default in node.args.defaults]
      return node
    if isinstance(node, ast.ClassDef):
      node.body = [one if isinstance(one, ast.AnnAssign) else self.visit(one) for one in node.body]
      return node
    if isinstance(node, ast.AnnAssign):
      if node.value is not None:
        node.value = self.visit(node.value)
      return node
    for name, changed in mutations(node):
      self.sites.append((node.lineno, name))
      self.count += 1
      if self.count - 1 == self.wanted:
        return ast.copy_location(changed, node)
    return self.generic_visit(node)


def sites(module):
  """[(line number, mutation)] of a module."""
  mutator = _Mutator()
  mutator.visit(ast.parse(_source(module)))
  return mutator.sites


def _path(module):
  return ROOT / (module.replace(".", "/") + ".py")


def _source(module):
  return _path(module).read_text(encoding="utf-8")


def mutated(module, site):
  """The code object of a module with one site changed."""
  tree = _Mutator(site).visit(ast.parse(_source(module)))
  return compile(ast.fix_missing_locations(tree), str(_path(module)), "exec")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Imports the mutant in the place of its module."""

  def __init__(self, module, code):
    self.module, self.code, self.has_loaded = module, code, False

  def find_spec(self, name, path=None, target=None):
    if name == self.module:
      return importlib.machinery.ModuleSpec(name, self, origin=str(_path(name)))
    return None

  def exec_module(self, module):
    self.has_loaded = True
    module.__file__ = str(_path(self.module))
    exec(self.code, module.__dict__)


def notices(module, site, tests):
  """Whether the tests fail on a mutant, by a process of its own; None: the unchanged module."""
  read, write = os.pipe()
  child = os.fork()
  if child == 0:
    os.close(read)
    os.setsid()
    status, finder = 1, None
    try:
      if site is not None:
        # The hook that checks shapes would import the file itself, before this finder is asked.
        shapes.MODULES = tuple(name for name in shapes.MODULES if name != module)
        sys.meta_path.insert(0, finder := _Finder(module, mutated(module, site)))
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, 1)
      os.dup2(null, 2)
      import pytest

      status = int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]))
      if finder is not None and not finder.has_loaded:
        status = NEVER_IMPORTED
    except BaseException:  # noqa: BLE001 - a mutant that cannot be imported is noticed
      status = 1
    finally:
      os.write(write, json.dumps(status).encode())
      os._exit(0)
  os.close(write)
  deadline = time.monotonic() + TIMEOUT
  while time.monotonic() < deadline:
    done, _ = os.waitpid(child, os.WNOHANG)
    if done:
      answer = os.read(read, 100)
      os.close(read)
      if answer and json.loads(answer) == NEVER_IMPORTED:
        raise RuntimeError(f"{tests} never imported the mutant of {module}.")
      return not answer or json.loads(answer) != 0
    time.sleep(0.05)
  os.killpg(child, signal.SIGKILL)
  os.waitpid(child, 0)
  os.close(read)
  return True


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default="", help="modules whose name begins so")
  parser.add_argument("--limit", type=int, default=24, help="mutants of a module, drawn at random")
  parser.add_argument("--output", help="file for the outcomes, as JSON")
  parser.add_argument("--part", default="0/1", help="i/n: every n-th mutant, to share the work")
  parser.add_argument("--skip", type=int, default=0, help="so many mutants are done already")
  parser.add_argument("--trusted", action="store_true",
                      help="the tests are known to pass without a mutant")
  options = parser.parse_args()
  # What takes long to import, and is the same for all; not the library, which is mutated.
  for heavy in ("jax", "flax.nnx", "optax", "orbax.checkpoint", "scipy.stats", "sklearn.metrics",
                "transformers", "hypothesis", "pytest", "rouge_score.rouge_scorer", "rlax"):
    importlib.import_module(heavy)
  work = []
  for module, tests in TARGETS.items():
    if module.startswith(options.only):
      every = list(enumerate(sites(module)))
      chosen = random.Random(module).sample(every, min(options.limit, len(every)))
      work += [(module, site, line, name, tests) for site, (line, name) in sorted(chosen)]
  part, parts = map(int, options.part.split("/"))
  work = work[part::parts][options.skip:]
  for tests in () if options.trusted else {tuple(tests) for *_, tests in work}:
    if notices("", None, tests):
      raise SystemExit(f"{' '.join(tests)} fail without any mutant.")
  outcomes, survivors = [], []
  for number, (module, site, line, name, tests) in enumerate(work, start=1):
    begin = time.monotonic()
    noticed = notices(module, site, tests)
    text = _source(module).splitlines()[line - 1].strip()
    why = EQUIVALENT.get((module, "".join(text.split()), name))
    outcomes.append({"module": module, "line": line, "mutation": name, "noticed": noticed,
                     "code": text, "equivalent": why})
    word = "noticed" if noticed else f"equivalent ({why})" if why else "SURVIVED"
    print(f"{number}/{len(work)} {module}:{line} {name}: {word} "
          f"({time.monotonic() - begin:.0f} s)", flush=True)
    if not noticed and not why:
      survivors.append(outcomes[-1])
  count = sum(one["noticed"] for one in outcomes)
  print(f"{count} of {len(outcomes)} mutants noticed, {len(survivors)} survived:")
  for one in survivors:
    print(f"  {one['module']}:{one['line']} {one['mutation']}: {one['code']}")
  if options.output:
    pathlib.Path(options.output).write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
  main()

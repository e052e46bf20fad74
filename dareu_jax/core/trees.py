"""Trees of arrays whose leaves have names: 'layers/0/attention/q_proj/kernel'."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree


def path_name(path: Sequence[Any]) -> str:
  """'layers/0/attention/q_proj/kernel' of a key path."""
  names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path)
  return "/".join(str(name) for name in names if name not in ("value", None))


def named_leaves(*trees: PyTree) -> dict[str, Any]:
  """{name: leaf} of all trees; of two leaves with one name, the last."""
  return {path_name(path): leaf for tree in trees
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
  """The tree with `function(name, leaf)` in place of each leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(path_name(path), leaf), tree)

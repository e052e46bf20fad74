"""A long job does not run into the limit of memory maps."""

import jax
import jax.numpy as jnp
import pytest

from dareu_jax.core import compilation

pytestmark = pytest.mark.skipif(not compilation.MAPS.exists(), reason="memory maps are Linux's")


def maps():
  return compilation.MAPS.read_text().count("\n")


def test_programs_go_beyond_the_limit_and_give_the_same_when_compiled_again():
  functions = [jax.jit(lambda x, i=i: jnp.sin(x * i) @ jnp.cos(x)) for i in range(40)]
  x = jnp.linspace(0.0, 1.0, 64).reshape(8, 8)
  before = [function(x).tolist() for function in functions]
  held = maps()
  compilation.drop_compiled_programs(limit=held + 1000)
  assert maps() > held - 100
  compilation.drop_compiled_programs(limit=10)
  assert maps() < held - 100
  assert [function(x).tolist() for function in functions] == before

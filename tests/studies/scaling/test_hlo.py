"""The cost of a compiled program, against what the program is known to do and against XLA."""

import jax
import jax.numpy as jnp
import pytest

from studies.scaling import hlo
from tests.jobs import on_eight_devices

ROWS, WIDTH, LAYERS = 64, 128, 5


def cost(function, *args, **how):
  compiled = jax.jit(function).lower(*args).compile()
  return hlo.Program(compiled.as_text(), **how).cost, compiled


def layers(x, weights):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


X, WEIGHTS = jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH))


def test_a_loop_counts_as_often_as_it_runs():
  """XLA's own analysis counts it once."""
  found, compiled = cost(layers, X, WEIGHTS)
  assert found.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH
  assert compiled.cost_analysis()["flops"] < found.flops


def test_without_loops_the_flops_are_xlas():
  """A contraction read the wrong way, a batch dimension left out."""
  a, b = jnp.ones((3, 16, 32)), jnp.ones((3, 32, 8))
  found, compiled = cost(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b)
  assert found.flops == 2 * 3 * 16 * 32 * 8
  assert found.flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)


def test_a_gradient_costs_twice_more():
  found, _ = cost(jax.grad(lambda w: jnp.sum(layers(X, w) ** 2)), WEIGHTS)
  assert found.flops == pytest.approx(3 * LAYERS * 2 * ROWS * WIDTH * WIDTH, rel=0.1)


def test_a_slice_of_a_stack_reads_itself_alone():
  """Counted whole, the weights of all layers would be read in each."""
  found, _ = cost(layers, X, WEIGHTS)
  once = WEIGHTS.nbytes + LAYERS * 3 * X.nbytes
  assert once <= found.traffic < 3 * once


def test_a_stack_that_is_updated_in_place_is_not_written_whole():
  """A cache of many slots of which a step fills one."""
  slots = 256

  def fill(cache):
    def body(i, cache):
      return jax.lax.dynamic_update_slice_in_dim(cache, jnp.full((1, 1024), i, jnp.float32), i, 0)
    return jax.lax.fori_loop(0, slots, body, cache)

  cache = jnp.zeros((slots, 1024))
  found, _ = cost(fill, cache)
  assert found.traffic < 8 * cache.nbytes  # and not 256 times


def test_a_loop_that_ends_early_runs_as_often_as_it_may():
  """Until all rows are done, or so many tokens."""
  def decode(x):
    def going(state):
      return (state[0] < 7) & ~jnp.all(state[1] > 1e9)
    return jax.lax.while_loop(going, lambda state: (state[0] + 1, state[1] @ WEIGHTS[0]), (0, x))
  found, _ = cost(decode, X)
  assert found.flops == 7 * 2 * ROWS * WIDTH * WIDTH


WINDOWED = """HloModule windowed

%going (s: (u32[], f32[4,8])) -> pred[] {
  %s = (u32[], f32[4,8]{1,0}) parameter(0)
  %n = u32[] constant(8)
  %i = u32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%turn (t: (u32[], f32[4,8])) -> (u32[], f32[4,8]) {
  %t = (u32[], f32[4,8]{1,0}) parameter(0)
  %j = u32[] get-tuple-element(%t), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%t), index=1
  %w = f32[8,8]{1,0} constant({...})
  %y = f32[4,8]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %two = u32[] constant(2)
  %further = u32[] add(%j, %two)
  ROOT %next = (u32[], f32[4,8]{1,0}) tuple(%further, %y)
}

ENTRY %main (a: f32[4,8], k: u32[]) -> (u32[], f32[4,8]) {
  %a = f32[4,8]{1,0} parameter(0)
  %k = u32[] parameter(1)
  %start = (u32[], f32[4,8]{1,0}) tuple(%k, %a)
  ROOT %loop = (u32[], f32[4,8]{1,0}) while(%start), condition=%going, body=%turn
}
"""


def test_loops_that_take_turns_with_a_collective_count_theirs():
  """The compiler makes them of large products on a mesh; their counters go up to 8 by twos."""
  assert hlo.Program(WINDOWED).cost.flops == 4 * 2 * 4 * 8 * 8


NESTED = """HloModule nested

%inner (p0: f32[100,1024], p1: s32[]) -> f32[1,1024] {
  %p0 = f32[100,1024]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,1024]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,1024}
}

%outer (q0: f32[100,1024], q1: s32[]) -> f32[1,1024] {
  %q0 = f32[100,1024]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %fusion.1 = f32[1,1024]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%inner
  ROOT %negate = f32[1,1024]{1,0} negate(%fusion.1)
}

ENTRY %main (a: f32[100,1024], i: s32[]) -> f32[1,1024] {
  %a = f32[100,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %fusion = f32[1,1024]{1,0} fusion(%a, %i), kind=kLoop, calls=%outer
}
"""


def test_a_slice_in_a_fusion_in_a_fusion_is_seen():
  """TPU programs nest them."""
  assert hlo.Program(NESTED).cost.traffic == 2 * 4096 + 4  # read, written, and the index


VIEWED = """HloModule viewed

%view (p: f32[1,256,64]) -> f32[256,64] {
  %p = f32[1,256,64]{2,1,0} parameter(0)
  ROOT %b = f32[256,64]{1,0} bitcast(%p)
}

%product (q0: f32[8,256], q1: f32[1,256,64]) -> f32[8,64] {
  %q0 = f32[8,256]{1,0} parameter(0)
  %q1 = f32[1,256,64]{2,1,0} parameter(1)
  %matrix = f32[256,64]{1,0} fusion(%q1), kind=kLoop, calls=%view
  ROOT %dot = f32[8,64]{1,0} dot(%q0, %matrix), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%turned (r: f32[1,256,64]) -> f32[64,256] {
  %r = f32[1,256,64]{2,1,0} parameter(0)
  %m = f32[256,64]{1,0} fusion(%r), kind=kLoop, calls=%view
  ROOT %t = f32[64,256]{1,0} transpose(%m), dimensions={1,0}
}

ENTRY %main (x: f32[8,256], w: f32[1,256,64]) -> (f32[8,64], f32[64,256]) {
  %x = f32[8,256]{1,0} parameter(0)
  %w = f32[1,256,64]{2,1,0} parameter(1)
  %y = f32[8,64]{1,0} fusion(%x, %w), kind=kOutput, calls=%product
  %z = f32[64,256]{1,0} fusion(%w), kind=kLoop, calls=%turned
  ROOT %out = (f32[8,64]{1,0}, f32[64,256]{1,0}) tuple(%y, %z)
}
"""


def test_what_a_nested_fusion_hands_on_as_a_view_is_read_by_its_user():
  """The weights of a product, seen in another shape, are read all the same; so is what is turned."""
  weights, x, y = 256 * 64 * 4, 8 * 256 * 4, 8 * 64 * 4
  assert hlo.Program(VIEWED).cost.traffic == (x + weights + y) + 2 * weights


CUBLAS = """HloModule product

ENTRY %main (a: bf16[8,32], b: bf16[32,16]) -> bf16[8,16] {
  %a = bf16[8,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %call = (bf16[8,16]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  ROOT %out = bf16[8,16]{1,0} get-tuple-element(%call), index=0
}
"""


def test_products_that_are_calls_of_cublas_count():
  """On GPUs most are; the bytes they work in are not written to the end."""
  found = hlo.Program(CUBLAS).cost
  assert found.flops == 2 * 8 * 16 * 32
  assert found.traffic == 2 * (8 * 32 + 32 * 16 + 8 * 16)


STARTED = """HloModule started

%slice_of (s: f32[32,64,16], i: s32[]) -> f32[1,64,16] {
  %s = f32[32,64,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,64,16]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), dynamic_slice_sizes={1,64,16}
}

ENTRY %main (stack: f32[32,64,16], n: s32[]) -> f32[1,64,16] {
  %stack = f32[32,64,16]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %fusion-start = ((f32[32,64,16]{2,1,0}, s32[]), f32[1,64,16]{2,1,0}, u32[]) fusion-start(%stack, %n), kind=kLoop, calls=%slice_of
  ROOT %fusion-done = f32[1,64,16]{2,1,0} fusion-done(%fusion-start)
}
"""


def test_a_fusion_that_is_started_moves_what_a_fusion_does():
  """On GPUs: its tuple names operands too, and the stack of all layers' weights is one of them."""
  slice_bytes = 64 * 16 * 4
  assert hlo.Program(STARTED).cost.traffic == pytest.approx(2 * slice_bytes, abs=16)


SPREAD = """HloModule spread

%begin (p0: bf16[8,64]) -> (bf16[64,64], u32[]) {
  %p0 = bf16[8,64]{1,0} parameter(0)
  %gather.1 = bf16[64,64]{1,0} all-gather(%p0), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
  %flag = u32[] constant(0)
  ROOT %t = (bf16[64,64]{1,0}, u32[]) tuple(%gather.1, %flag)
}

%go_on (r0: bf16[8,64], r1: bf16[64,64], r2: f32[4,4]) -> (f32[4,4], bf16[64,64]) {
  %r0 = bf16[8,64]{1,0} parameter(0)
  %r1 = bf16[64,64]{1,0:S(1)} parameter(1)
  %r2 = f32[4,4]{1,0} parameter(2)
  %product = f32[4,4]{1,0} dot(%r2, %r2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gather.2 = bf16[64,64]{1,0:S(1)} all-gather(%r0), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
  ROOT %u = (f32[4,4]{1,0}, bf16[64,64]{1,0:S(1)}) tuple(%product, %gather.2)
}

ENTRY %main (a: bf16[8,64], b: f32[4,4]) -> f32[4,4] {
  %a = bf16[8,64]{1,0} parameter(0)
  %b = f32[4,4]{1,0} parameter(1)
  %start = (bf16[64,64]{1,0:S(1)}, u32[]) fusion(%a), kind=kCustom, calls=%begin
  %half = bf16[64,64]{1,0:S(1)} get-tuple-element(%start), index=0
  %step = (f32[4,4]{1,0}, bf16[64,64]{1,0:S(1)}) fusion(%a, %half, %b), kind=kOutput, calls=%go_on
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%step), index=0
}
"""


def test_a_collective_that_is_spread_over_fusions_counts_once():
  """Its channel is named in each of them; fast memory costs no HBM traffic."""
  found = hlo.Program(SPREAD).cost
  assert found.collectives == {"all-gather": 64 * 64 * 2 * 7 / 8}
  assert found.flops == 2 * 4 * 4 * 4
  assert found.traffic == 8 * 64 * 2 + 2 * 64 + 4  # the share that is sent, the product, the flag


@pytest.mark.parametrize(("text", "size"), [
  ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4), ("replica_groups=[2,8]<=[16]", 8),
  ("replica_groups=[4,4]<=[4,4]T(1,0)", 4), ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
  ("replica_groups=mesh['a'=8] {'a':(1)2}", 2),
  ("replica_groups=mesh['a'=1,'b'=4,'c'=4], device_ids=([4,4]T(1,0)) {'b'}, dimensions={2}", 4)])
def test_groups_are_read_in_all_their_forms(text, size):
  assert hlo._group_size(text) == size


def test_convolutions_count_no_padding():
  """As XLA does; TPU programs write their products as convolutions."""
  x, k = jnp.ones((2, 3, 9)), jnp.ones((4, 3, 5))
  for stride, pad, dilation in ((1, 2, 1), (2, 1, 1), (1, 3, 2)):
    found, compiled = cost(lambda x, k, stride=stride, pad=pad, dilation=dilation: (
      jax.lax.conv_general_dilated(x, k, (stride,), [(pad, pad)], rhs_dilation=(dilation,))), x, k)
    assert found.flops == compiled.cost_analysis()["flops"]


COLLECTIVES = '''
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from studies.scaling import hlo
mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
def on(*axes): return NamedSharding(mesh, P(*axes))
def cost(f, out, *args):
  args = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=sh) for s, sh in args]
  text = jax.jit(f, out_shardings=out).lower(*args).compile().as_text()
  return dict(hlo.Program(text).cost.collectives)
def twice(x, w):
  return jax.lax.scan(lambda x, w: (jax.lax.with_sharding_constraint(x @ w, on()), None), x, w)[0]
print(json.dumps({
  "gather": cost(lambda x: x, on(), ((64, 32), on("x"))),
  "reduce": cost(lambda x: x.sum(0), on(), ((64, 4096), on("x"))),
  "layers": cost(twice, on(), ((16, 256), on()), ((3, 256, 256), on(None, "x")))}))
'''


def test_collectives_move_what_a_ring_moves():
  """The compiler's own choice of them, on eight devices; a loop's as often as it runs."""
  found = on_eight_devices(COLLECTIVES)
  assert found["gather"] == {"all-gather": 64 * 32 * 4 * 7 / 8}
  assert found["reduce"] == {"all-reduce": 4096 * 4 * 7 / 8 * 2}
  once = 16 * 256 * 4 * 7 / 8
  assert found["layers"] in ({"all-gather": 3 * once},  # each time the result, or its summands
                             {"all-reduce": 3 * 2 * once, "all-gather": once})

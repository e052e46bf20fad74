"""Cost of a compiled program on one device: FLOPs, HBM traffic and collectives, from its HLO text.

XLA's own `cost_analysis` counts the body of a loop once, but scans over layers and decode loops are
nearly all of the cost. Here each loop counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections import Counter

from studies.scaling.hlo_text import Shape, parse

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that only name existing data, or that another instruction accounts for.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
         "partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done", "async-done",
         "async-update", "add-dependency", "broadcast-done", "rng-get-and-update-state"}
_VIEWS = {"bitcast", "reshape", "transpose", "copy", "convert"}  # the same numbers, in a fusion
_COUNTERS = [Shape(dtype, ()) for dtype in ("s32", "u32", "s64", "u64")]


@dataclasses.dataclass
class Cost:
  """Work of one device; bytes of collectives by kind, as sent over the links."""

  flops: float = 0.0
  traffic: float = 0.0
  collectives: Counter = dataclasses.field(default_factory=Counter)

  def add(self, other: "Cost", times: int = 1) -> None:
    """Adds another cost, `times` times."""
    self.flops += times * other.flops
    self.traffic += times * other.traffic
    for kind, amount in other.collectives.items():
      self.collectives[kind] += times * amount


class Program:
  """The parsed text of a compiled program."""

  def __init__(self, text: str, *, loop_trips: int = 1):
    """`loop_trips` is the trip count of a loop whose text does not contain it."""
    self.loop_trips = loop_trips
    self.computations, self.entry = parse(text)

  @functools.cached_property
  def cost(self) -> Cost:
    """Cost of one run of the whole program."""
    return self._of_computation(self.entry)

  @functools.cache  # noqa: B019 - a program is read once and dropped
  def _of_computation(self, name):
    total = Cost()
    for instruction in self.computations[name].values():
      self._add(total, name, instruction)
    # An asynchronous collective is spread over several fusions: each channel counts once.
    channels: dict[str, list] = {}
    for computation, op, kind in self._collectives(name):
      channel = re.search(r"channel_id=(\d+)", op.attributes)
      channels.setdefault(channel[1] if channel else op.name, []).append((computation, op, kind))
    for parts in channels.values():
      computation, op, kind = parts[0]
      total.collectives[kind] += self._moved(computation, op, kind)
      # In fast memory if one of its parts is known to be there.
      total.traffic += min(self._touched(*part[:2]) for part in parts)
    return total

  def _touched(self, computation, op):
    operands = self._operands(computation, op)
    return sum(shape.traffic for operand in operands for shape in operand.shapes) + max(
      (shape.traffic for shape in op.shapes), default=0)

  def _collectives(self, name):
    """Yields (computation, Instruction, kind) of the collectives here and in fusions."""
    for op in self.computations[name].values():
      kind = op.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        yield name, op, kind
      elif op.opcode == "fusion":
        for called in op.called("calls"):
          yield from self._collectives(called)

  def _add(self, total, computation, op):
    """Adds an instruction's cost, including the computations that it calls."""
    if op.opcode == "while":
      for part in ("condition", "body"):
        for called in op.called(part):
          total.add(self._of_computation(called), self._trips(op))
      return
    if op.opcode == "conditional":
      branches = op.called("branch_computations") or (
        op.called("true_computation") + op.called("false_computation"))
      costs = [self._of_computation(branch) for branch in branches]
      total.add(max(costs, key=lambda cost: (cost.flops, cost.traffic)))
      return
    if op.opcode in ("call", "async-start"):
      for called in op.called("to_apply") or op.called("calls"):
        total.add(self._of_computation(called))
      return
    total.flops += self._flops(computation, op)
    total.traffic += self._traffic(computation, op)

  def _trips(self, op):
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.attributes)
    if known:
      return int(known[1])
    # A counter that starts at 0 and is compared with a number, whatever else may end the loop.
    bounds = [bound for name in op.called("condition") for bound in self._integers(name)]
    return -(-max(bounds) // self._step(op)) if bounds else self.loop_trips

  def _step(self, op):
    """The increment of a loop's counter, the part of its state that the condition compares."""
    condition, body = (self.computations[op.called(part)[0]] for part in ("condition", "body"))
    state = self._root(op.called("body")[0]).operands
    for compared in (each for each in condition.values() if each.opcode == "compare"):
      for part in map(condition.get, compared.operands):
        if part is not None and part.opcode == "get-tuple-element":
          index = int(_match(r"index=(\d+)", part.attributes)[1])
          grown = body[state[index]]
          added = [body[name] for name in grown.operands if grown.opcode == "add" and name in body]
          return next((_integer(each) for each in added if each.opcode == "constant"), 1)
    return 1

  def _integers(self, name):
    """Integer constants of a computation and of those that it calls."""
    for op in self.computations[name].values():
      if op.opcode == "constant" and op.shapes[0] in _COUNTERS:
        yield _integer(op)
      for called in op.called("calls") if op.opcode == "fusion" else ():
        yield from self._integers(called)

  def _root(self, name):
    """The Instruction that a computation returns."""
    return next(op for op in self.computations[name].values() if op.is_root)

  def _operands(self, computation, op):
    ops = self.computations[computation]
    return [ops[name] for name in op.operands if name in ops]

  # FLOPs.

  def _flops(self, computation, op):
    """Multiplications and additions of matrix products; other FLOPs are negligible.

    On GPUs they are calls of cuBLAS. Attention by cuDNN or in a Pallas kernel is not counted.
    """
    if op.opcode == "fusion":
      return sum(self._flops(called, inner) for called in op.called("calls")
                 for inner in self.computations[called].values())
    if op.opcode == "dot":
      return self._product_flops(computation, op, r"lhs_contracting_dims=\{([\d,]*)\}")
    if op.opcode == "convolution":
      return self._convolution_flops(computation, op)
    if op.opcode == "custom-call" and 'custom_call_target="__cublas' in op.attributes:
      return self._product_flops(computation, op, r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    return 0

  def _product_flops(self, computation, op, summed):
    """FLOPs of a matrix product; `summed` finds the contracted dimensions of its left side."""
    left = self._operands(computation, op)[0].shapes[0]
    dimensions = re.findall(r"\d+", _match(summed, op.attributes)[1])
    return 2 * op.shapes[0].size * math.prod(left.dims[int(i)] for i in dimensions)

  def _convolution_flops(self, computation, op):
    """FLOPs as XLA counts them: window positions on padding are not multiplied."""
    left, kernel = (operand.shapes[0] for operand in self._operands(computation, op)[:2])
    lhs, rhs, out = _match(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes).groups()
    features = kernel.dims[rhs.index("i")]
    window = re.search(r"window=\{([^}]*)\}", op.attributes)
    places = 1
    for axis in sorted(set(rhs) - {"i", "o"}):
      places *= _window_products(
        _window(window and window[1], int(axis)), left.dims[lhs.index(axis)],
        op.shapes[0].dims[out.index(axis)])
    batch = op.shapes[0].dims[out.index("b")]
    produced = op.shapes[0].dims[out.index("f")]
    # Groups of the batch are separate products: each sees only its share of the rows.
    groups = re.search(r"batch_group_count=(\d+)", op.attributes)
    rows = left.dims[lhs.index("b")] // int(groups[1]) if groups and int(groups[1]) > 1 else batch
    return 2 * rows * produced * features * places

  # Traffic.

  def _traffic(self, computation, op):
    if (op.opcode in _FREE or op.opcode.endswith("-done") or _is_marker(op)
        or op.opcode.removesuffix("-start") in COLLECTIVES):
      return 0
    operands = self._operands(computation, op)
    if op.opcode == "fusion":
      body = op.called("calls")[0]
      reads = sum(self._read(body, index, operand.shapes[0])
                  for index, operand in enumerate(operands) if operand.shapes)
      return reads + self._written(body, op.shapes)
    if op.opcode.removesuffix("-start") in ("dynamic-slice", "slice", "gather"):
      # In a start's tuple the slice is the smallest array that is not a scalar.
      cut = min((s for s in op.shapes if s.dims), key=lambda s: s.size, default=op.shapes[0])
      return cut.traffic + (0 if operands[0].shapes[0].fast else cut.bytes)
    if op.opcode == "dynamic-update-slice":
      return 0 if op.shapes[0].fast else 2 * operands[1].shapes[0].bytes
    if op.opcode == "scatter":
      return 0 if op.shapes[0].fast else 3 * operands[-1].shapes[0].bytes
    # In a tuple (copy-start) the first part is the copy, the others describe its source.
    written = op.shapes[:1] if op.opcode.endswith("-start") else op.shapes
    if 'custom_call_target="__cu' in op.attributes:  # of cuBLAS, cuDNN: the rest is workspace
      written = [shape for shape in written if shape.dtype not in ("s8", "u8")]
    return sum(shape.traffic for operand in operands for shape in operand.shapes) + sum(
      shape.traffic for shape in written)

  def _parameter(self, body, index):
    return next(op for op in self.computations[body].values()
                if op.opcode == "parameter" and op.attributes.split(")")[0] == str(index))

  def _read(self, body, index, shape):
    """Bytes that a fusion reads of an operand: those that its uses need, at most all."""
    if shape.fast:
      return 0
    return min(shape.bytes, self._read_of(body, self._parameter(body, index).name, shape))

  def _read_of(self, body, name, shape, handed_out=None):
    """`handed_out`: bytes read of this nested fusion's result, if that is a view."""
    whole = functools.partial(int, shape.bytes)
    total: float = 0
    for use in self.computations[body].values():
      if name not in use.operands:
        continue
      if use.opcode in ("dynamic-slice", "slice", "gather"):
        total += use.shapes[0].bytes if use.operands[0] == name else shape.bytes
      elif use.opcode == "dynamic-update-slice" and use.operands[0] == name:
        total += 0  # in place: only the replaced part is touched
      elif use.opcode == "fusion":
        inner = use.called("calls")[0]
        after = (handed_out or whole) if use.is_root else functools.partial(
          self._read_of, body, use.name, shape, handed_out)
        total += sum(self._read_of(inner, self._parameter(inner, i).name, shape, after)
                     for i, operand in enumerate(use.operands) if operand == name)
      elif use.opcode in _VIEWS:
        total += (handed_out or whole)() if use.is_root else self._read_of(
          body, use.name, shape, handed_out)
      elif (use.opcode == "tuple" and use.is_root) or use.opcode in COLLECTIVES or _is_marker(use):
        total += 0  # passed through, or counted with its channel
      else:
        return shape.bytes
    return total

  def _written(self, body, shapes):
    """Bytes that a fusion writes: for a result updated in place, only the update."""
    root = self._root(body)
    parts = root.operands if root.opcode == "tuple" else (root.name,)
    return sum(0 if shape.fast else min(shape.bytes, self._written_by(body, name, shape))
               for name, shape in zip(parts, shapes, strict=False))

  def _written_by(self, body, name, shape, copied=False):
    op = self.computations[body].get(name)
    if op is None:
      return shape.bytes
    if op.opcode == "dynamic-update-slice":
      return self.computations[body][op.operands[1]].shapes[0].bytes
    if op.opcode in _VIEWS:
      copied = copied or op.opcode != "bitcast"
      return self._written_by(body, op.operands[0], shape, copied)
    if op.opcode == "fusion":
      inner = op.called("calls")[0]
      root = self._root(inner)
      if root.opcode != "tuple":
        return self._written_by(inner, root.name, shape, copied)
    handed_on = op.opcode == "parameter" and not copied
    return 0 if handed_on or op.opcode in COLLECTIVES or _is_marker(op) else shape.bytes

  # Collectives.

  def _moved(self, computation, op, kind):
    """Bytes that a device sends, by the usual ring algorithms over a group of n:

        all-gather, reduce-scatter, all-to-all: (n-1)/n of the whole; all-reduce: twice that
    """
    n = _group_size(op.attributes)
    operands = self._operands(computation, op)
    read = sum(shape.bytes for operand in operands for shape in operand.shapes)
    if kind == "collective-permute":
      return read
    whole = read * n if kind == "all-gather" else read
    return whole * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _match(pattern, text):
  """The match of a pattern that a text must have."""
  match = re.search(pattern, text)
  if match is None:
    raise ValueError(f"no {pattern} in {text[:80]!r}")
  return match


def _integer(op):
  """The value of an integer constant."""
  return int(op.attributes.split(")")[0])


def _is_marker(op):
  """Whether a custom call is only an annotation for the compiler."""
  return op.opcode == "custom-call" and any(
    f'custom_call_target="{name}' in op.attributes
    for name in ("AsyncCollective", "AllocateBuffer", "ConcatBitcast", "AssumeGather"))


def _window(text, axis):
  """(size, stride, padding below, dilation of the input, of the window) along an axis."""
  def part(name, default):
    match = re.search(rf"(?:^|\s){name}=(\S+)", text or "")
    return match[1].split("x")[axis] if match else default

  low = part("pad", "0_0").split("_")[0]
  return (int(part("size", 1)), int(part("stride", 1)), int(low), int(part("lhs_dilate", 1)),
          int(part("rhs_dilate", 1)))


def _window_products(window, length, out):
  """Pairs of an output and a window position that meet an element of the input."""
  size, stride, low, spread, step = window
  pairs = 0
  for k in range(size):
    # Output position o reads o·stride + k·step - low, if that is a multiple of spread.
    if stride == 1 and spread == 1:
      first, last = max(0, low - k * step), min(out, length + low - k * step)
      pairs += max(0, last - first)
    else:
      at = [o * stride + k * step - low for o in range(out)]
      pairs += sum(place % spread == 0 and 0 <= place // spread < length for place in at)
  return pairs


def _group_size(attributes):
  """Number of devices in a collective's group, in any of HLO's notations."""
  match = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
  if match:
    return int(match[2])
  match = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\S*\))?\s*\{([^}]*)\}",
                    attributes)
  if match:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
    return math.prod(int(part or sizes[name]) for name, part in named)
  match = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
  return len(match[1].split(",")) if match else 1

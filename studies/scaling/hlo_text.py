"""Parses the text of a compiled HLO program: computations, instructions, shapes."""

import dataclasses
import math
import re

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2,
         "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
         "c64": 8}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^\s*(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$")


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array: dtype, dimensions, and whether it is in the chip's fast memory instead of HBM."""

  dtype: str
  dims: tuple[int, ...]
  fast: bool = False

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Bytes in any memory; 0 for tokens and the like."""
    return self.size * BYTES.get(self.dtype, 0)

  @property
  def traffic(self) -> float:
    """Bytes of HBM traffic when all of it is read or written."""
    return 0 if self.fast else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of HLO."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]  # of its result; several for a tuple
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def called(self, attribute: str) -> list[str]:
    """Names of the computations in an attribute such as 'calls' or 'body'."""
    names = re.search(attribute + r"=(\{[^}]*\}|%?[\w.\-]+)", self.attributes)
    return re.findall(r"[\w.\-]+", names[1]) if names else []


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """({computation: {name: Instruction}}, the entry's name)."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = None, None
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header and " = " not in line.split(" -> ")[0]:
      current = computations.setdefault(header[1], {})
      if line.lstrip().startswith("ENTRY"):
        entry = header[1]
      continue
    match = _INSTRUCTION.match(line)
    if match and current is not None:
      instruction = _instruction(match[1], match[2], line.lstrip().startswith("ROOT"))
      if instruction is not None:
        current[instruction.name] = instruction
  if entry is None:
    raise ValueError("the text holds no HLO module with an entry")
  return computations, entry


def _instruction(name, rest, is_root):
  """Parses an Instruction from the text after its '='."""
  rest = re.sub(r"/\*.*?\*/", "", rest)
  end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
  shapes, rest = rest[:end], rest[end:].lstrip()
  called = re.match(r"([\w\-]+)\(", rest)
  if not called:
    return None
  start = called.end() - 1
  stop = start + _closing(rest[start:])
  inside, attributes = rest[start + 1:stop], rest[stop + 1:]
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  opcode = called[1]
  if opcode in ("parameter", "constant"):
    attributes = inside + ")" + attributes
  if opcode == "fusion-start":  # on GPUs: (operands, results, context); its end is free
    opcode, shapes = "fusion", _parts(shapes)[1]
  return Instruction(name, opcode, tuple(map(_shape, _SHAPE.findall(shapes))), operands,
                     attributes, is_root)


def _parts(text):
  """The elements of a tuple, '(a, (b, c))': ['a', '(b, c)']."""
  parts, depth, begin = [], 0, 1
  for i, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    if (letter == "," and depth == 1) or not depth:
      parts.append(text[begin:i].strip())
      begin = i + 1
  return parts


def _closing(text):
  """Index of the bracket that closes the first one of a text."""
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return i
  raise ValueError(f"no closing bracket in {text[:80]!r}")


def _shape(groups):
  """A Shape from the groups of _SHAPE."""
  dtype, dims, layout = groups
  return Shape(dtype, tuple(int(d) for d in dims.split(",") if d), "S(" in layout)

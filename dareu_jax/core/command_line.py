"""Shared code of the entry modules: flags and one-line error messages."""

import difflib
import errno
import os
import pathlib
import runpy
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging

from dareu_jax.core import interruption
from dareu_jax.core.compilation import compilation_cache_dir
from dareu_jax.core.errors import InputError

CACHE = pathlib.Path.home() / ".cache" / "dareu_jax" / "programs"
TERMINATED = 128 + signal.SIGTERM  # the exit status that a shell reports after SIGTERM


class Flags:
  """The values of a program's flags by name, ~ being the home folder; `rest` holds the other
  arguments."""

  def __init__(self, rest: list[str]):
    self.rest = rest

  def __getattr__(self, name: str) -> Any:
    value = flags.FLAGS[name].value
    if isinstance(value, list):
      return [os.path.expanduser(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def enter(job: Callable[[Flags], None], define_flags: Callable[[], None], *, required: list[str],
          hint: str = "", takes_rest: bool = False) -> None:
  """Runs a program: parses its flags, then calls its job.

  Importing an entry module defines no flags, so that one process can import several.

  Args:
    job: function of `Flags`.
    define_flags: function that defines the flags of the program.
    required: names of the flags that must be given.
    hint: sentence on what the same command does after an interruption.
    takes_rest: whether arguments other than flags are allowed.
  """

  def parse(args):
    define_flags()
    return parse_flags(args, required)

  def run(argv):
    return guarded(lambda: job(Flags(argv[1:])), [] if takes_rest else argv, hint=hint)

  app.run(run, flags_parser=parse)


def define_hosts() -> None:
  """Flags of a job of several processes, for `parallel.hosts.start_by_flags`."""
  flags.DEFINE_bool(
    "distributed", False, "Join the other hosts; automatic on TPU pods, SLURM, Open MPI and GKE.")
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process, where it is not detected.")
  flags.DEFINE_integer("num_processes", None, "Number of processes.", lower_bound=1)
  flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", lower_bound=0)


def keep_programs() -> None:
  """Keeps compiled programs in a folder for later runs, on accelerators or if a folder is set.

  On CPU compilation is quick, and programs fit only the processor that compiled them.
  """
  if jax.default_backend() != "cpu" and not compilation_cache_dir():
    jax.config.update("jax_compilation_cache_dir", str(CACHE))


def typed() -> str:
  """The command that the user typed, for a report."""
  spec = sys.modules["__main__"].__spec__
  program = f"-m {spec.name.removesuffix('.__main__')}" if spec else shlex.quote(sys.argv[0])
  return " ".join(["python", program, *map(_quoted, sys.argv[1:])])


def _quoted(word):
  """A word quoted for a shell; in double quotes if it has single quotes, as tuples of names do."""
  return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def guarded(job: Callable[[], None], argv: list[str], *, hint: str) -> int:
  """Runs a job; errors that the user can fix are printed as one line.

  Args:
    job: function without arguments.
    argv: the program, then the arguments that are not flags.
    hint: sentence on what the same command does after an interruption.

  Returns: exit status; 2 for an error that the user can fix, 143 after SIGTERM.
  """
  if len(argv) > 1:
    return fail(f"{argv[1]!r} is not a flag. Flags have the form --name=value.")
  interruption.listen()
  try:
    job()
  except interruption.Interrupted:
    fail(f"stopped by SIGTERM or SIGHUP; all progress is saved. {hint}")
    return TERMINATED
  except (Exception, KeyboardInterrupt) as error:
    message = user_message(error)
    if not message:
      raise
    return fail(message if isinstance(error, InputError) else f"{message} {hint}")
  return 0


def user_message(error: BaseException) -> str:
  """One line for an error that the user can fix; '' for a bug."""
  if isinstance(error, InputError):
    return str(error)
  if isinstance(error, KeyboardInterrupt):
    return "interrupted."
  full = _disk_full(error)
  return full and (f"no space left on the disk ({full}). Free some space, and run the same "
                   "command again.")


def parse_flags(args: list[str], required: Sequence[str] = ()) -> list[str]:
  """Parses the command line; a wrong flag ends the program with a one-line error.

  Args:
    args: the program and its arguments.
    required: names of the flags that must have a value.

  Returns: the program and the arguments that are not flags.
  """
  known = flags.FLAGS
  args = [_installed(arg) for arg in args]
  try:
    rest = known(_last_of_each(args))
    for name in required:
      if known[name].value in (None, ""):
        raise flags.Error(f"--{name} needs a value. {known[name].help}")
    if "config" in known:
      known.config.keys()  # a missing config file fails only when it is read
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError,
          ImportError) as error:
    sys.exit(fail(_flag_error(error, args)))
  logging.set_verbosity(logging.ERROR if known["verbosity"].using_default_value
                        else known.verbosity)
  return rest


def _installed(arg):
  """The argument; a config that the folder does not have is the one that came with the package."""
  file, _, preset = arg.removeprefix("--config=").partition(":")
  path = pathlib.PurePath(file)
  if not arg.startswith("--config=") or path.parts[:-1] != ("configs",) or os.path.exists(file):
    return arg
  package = pathlib.Path(__file__).parents[1]
  for folder in (package / "configs", package.parent / "configs"):  # of a wheel, of a checkout
    if (folder / path.name).exists():
      return f"--config={folder / path.name}" + (f":{preset}" if preset else "")
  return arg


def _last_of_each(args):
  """The arguments without settings that are set again later: repeated tuples would be joined."""
  last = {arg.partition("=")[0]: i for i, arg in enumerate(args)}
  return [arg for i, arg in enumerate(args)
          if not (arg.startswith("--config.") and "=" in arg) or last[arg.partition("=")[0]] == i]


def _unknown_setting(args):
  """A sentence on the first flag that sets what the config file does not have; '' if none does."""
  file = next((arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")), "")
  if not file:
    return ""
  path, _, preset = file.partition(":")
  try:
    config = runpy.run_path(path)["get_config"](*([preset] if preset else []))
  except Exception:  # noqa: BLE001 - the config file is wrong itself, which is said elsewhere
    return ""
  known = tuple(_keys(config))
  for arg in args:
    key = arg.removeprefix("--config.").partition("=")[0]
    if arg.startswith("--config.") and not any(
        name == key or name.startswith(f"{key}.") for name in known):
      alike = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
      near = (difflib.get_close_matches(key, alike, n=1, cutoff=0.0)
              or difflib.get_close_matches(key, known, n=1, cutoff=0.8))
      hint = f" Did you mean config.{near[0]}?" if near else ""
      return f"config.{key} is not a setting.{hint} docs/configuration.md has all of them."
  return ""


def _keys(config, prefix=""):
  for name in config:
    if hasattr(config[name], "keys") and len(config[name]):
      yield from _keys(config[name], f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"


def fail(message: str) -> int:
  """Prints an error; returns the exit status."""
  print(f"error: {message}".rstrip(), file=sys.stderr)
  return 2


def _disk_full(error):
  """The message of a full disk somewhere in the chain of causes, or ''."""
  while error is not None:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
      return str(error).strip().splitlines()[0]
    error = error.__cause__ or error.__context__
  return ""


def _flag_error(error, args):
  """The first line of an error of absl or ml_collections; the last if a config file is wrong."""
  for arg in args:
    file = arg.removeprefix("--config=").partition(":")[0]
    if arg.startswith("--config=") and not os.path.exists(file):
      return f"{arg}: no such file."
  unknown = _unknown_setting(args)
  if unknown:
    return unknown
  text = error.args[0] if isinstance(error, KeyError) else error
  lines = str(text).strip().splitlines() or [type(error).__name__]
  line = lines[-1 if "whilst parsing config file" in lines[0] else 0]
  return line.removeprefix("ValueError: ")  # of a config file that rejects its preset

"""Every number of a few small runs, to be compared before and after a change that must move none.

    python -m tests.oracle record before.json      # eight minutes on 2 cores
    python -m tests.oracle compare before.json after.json

All methods, two seeds, adapters, three ablations, a run that is killed and resumed, a robustness
card, two exports and the faithfulness study, on the smallest configs. What is kept: metrics, epochs,
training curves, hashes of batches, digests of every saved array. Times and fingerprints are left
out. On one machine two recordings agree to the last bit; other machines round otherwise.
"""

import hashlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.configs import oracle_config

def get_config(name=None):
  return oracle_config(name)
'''
STUDY = f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.studies.faithfulness.configs import smallest_study

def get_config(name=None):
  return smallest_study()
'''
# Of how long it took, when, and what the program was called with.
IGNORED_KEYS = ("seconds", "step_seconds", "reward_seconds", "time", "stages", "fingerprint", "date",
                "this run")
IGNORED_FILES = ("config.json", "time.json", "done.json", "started.json", "tokenizer_config.json",
                 "format.json")


def run(*command):
  subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def interrupted(sign, workdir, *command):
  """Kills a command as soon as the path `sign` is there, and gives it again."""
  process = subprocess.Popen([sys.executable, "-m", *map(str, command)], cwd=ROOT,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while not (workdir / sign).exists():
    assert process.poll() is None, f"{command} ended before {sign} was there"
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  run(*command)


def numbers(folder):
  """{path: value} of everything that the runs below a folder left."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if not path.is_file() or path.name in IGNORED_FILES or ".files." in path.name:
      continue
    if path.parent.name == "meta" and path.name == "metadata":  # of an Orbax checkpoint
      digests = json.loads(path.read_text())["digests"]
      found |= {f"{name}:{array}": digest for array, digest in digests.items()}
    elif "/result/" in name or "/progress/" in name:
      continue
    elif path.suffix == ".json":
      _flatten(json.loads(path.read_text()), name, found)
    elif path.suffix == ".jsonl":
      for line in path.read_text().splitlines():
        _flatten(record := json.loads(line), f"{name}:{record.get('step')}", found)
    elif path.suffix == ".batches":
      found[name] = path.read_text()
    elif path.suffix == ".safetensors":
      found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return found


def _flatten(value, name, found):
  if isinstance(value, dict):
    for key, part in value.items():
      if key not in IGNORED_KEYS:
        _flatten(part, f"{name}.{key}", found)
  elif isinstance(value, list):
    for i, part in enumerate(value):
      _flatten(part, f"{name}[{i}]", found)
  else:
    found[name] = value


def record(output):
  folder = pathlib.Path(tempfile.mkdtemp())
  config, study = folder / "smallest.py", folder / "study.py"
  config.write_text(CONFIG)
  study.write_text(STUDY)

  def job(name):
    return "dareu_jax.main", f"--config={config}:{name}", f"--workdir={folder / name}"

  try:
    for name in ("methods", "adapters", "grpo", "refusal", "classifier"):
      run(*job(name))
      print(name, flush=True)
    interrupted("dareu/progress/2", folder / "killed", *job("killed"))
    run("dareu_jax.robustness", f"--workdir={folder / 'adapters'}", "--samples=3")
    for method in ("dareu", "grad_diff"):
      run("dareu_jax.export", f"--workdir={folder / 'adapters'}", f"--method={method}",
          f"--output={folder / 'exported' / method}")
    print("robustness, exports", flush=True)
    run(STUDY_PROGRAM, f"--config={study}", f"--workdir={folder / 'study'}")
    found = numbers(folder)
  finally:
    shutil.rmtree(folder)
  pathlib.Path(output).write_text(json.dumps(found, indent=0, sort_keys=True))
  print(f"{len(found)} numbers in {output}")


STUDY_PROGRAM = "studies.faithfulness"
# What has another name since 62197bd, as (old, new) parts of a path or a text. Per-example figures,
# which evaluations kept then, follow from the records that they keep now.
RENAMED = (("retrained_again", "retrained_replica"), ("kl_minimisation", "kl_minimization"),
           ("watched", "tracked"), ("quantisation", "quantization"), ("randomised", "randomized"))


def compare(before, after):
  """Prints what differs; gives how much does."""
  old, new = (json.loads(pathlib.Path(path).read_text()) for path in (before, after))
  for was, now in RENAMED:
    old = {name.replace(was, now): value.replace(was, now) if isinstance(value, str) else value
           for name, value in old.items()}
  lost, more = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
  different = [name for name in old.keys() & new.keys() if repr(old[name]) != repr(new[name])]
  for title, names in (("no longer there", lost), ("new", more), ("different", different)):
    for name in sorted(names)[:20]:
      print(f"{title}: {name} {old.get(name)} {new.get(name)}")
    print(f"{len(names)} {title}")
  print(f"{len(old.keys() & new.keys()) - len(different)} the same")
  return len(lost) + len(different)


if __name__ == "__main__":
  sys.exit(record(*sys.argv[2:]) if sys.argv[1] == "record" else compare(*sys.argv[2:]) and 1)

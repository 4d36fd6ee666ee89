"""Hostile workdirs: wrong JSON where a run looks for its own, and links that lead elsewhere."""

import functools
import json

from hostile_case import Case
from hostile_checkpoints import DEEP, copy
from hostile_configs import config

from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.lock import locked
from bionets_jax.training.summary import finished
from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.run_facts import read_run


def cases() -> list[Case]:
  """Each is a workdir with a sound checkpoint, in which one file is not what it should be."""

  def case(title, change, call, says):
    def prepare(folder, random):
      copy(folder)
      change(folder / "run")
      return functools.partial(call, folder / "run")

    return Case(f"workdirs: {title}", prepare, says)

  def evaluated(run):
    evaluate_workdir(config(), str(run))

  def done(run):
    finished(config(), str(run))

  def lock(run):
    with locked(str(run)):
      pass

  def linked(name, target):
    def change(run):
      (run / name).unlink(missing_ok=True)
      (run / name).symlink_to(target)

    return change

  def holds(name, text):
    return lambda run: (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())

  texts = {
    "a list": "[1]",
    "a number": "1",
    "no JSON": "{",
    "100,000 deep": DEEP,
    "no text": b"\xff\xfe",
    "nothing": "",
    "a list for its task": '{"task": [1]}',
    "another run": '{"task": "wld"}',
  }
  found = [
    case(f"config.json is {title}", holds("config.json", text), evaluated, "run.*(damaged|another run)")
    for title, text in texts.items()
  ]
  sections = {
    "a list": "[1]",
    "empty": "{}",
    "of numbers": '{"last": 5, "best": 5}',
    "100,000 deep": DEEP,
    "of text": json.dumps({"last": {"top1_error": "x", "step": 1}, "best": {}, "paper": {}, "model": "m"}),
    "without a paper": json.dumps(
      {"last": {"top1_error": 1, "step": 1}, "best": {"top1_error": 1, "step": 1}, "model": "m"}
    ),
  }
  found += [
    case(f"summary.json is {title}", holds("summary.json", text), done, "summary.json is damaged")
    for title, text in sections.items()
  ]
  found += [
    case(f"the card's {title}", holds("summary.json", text), read_run, "summary.json is damaged")
    for title, text in (("last error is a list", '{"last": [1]}'), ("inputs are text", '{"inputs": "x"}'))
  ]
  for name in ("config.json", "summary.json"):
    for target in ("/dev/zero", "/dev/tty", ".", "/etc/passwd"):
      found.append(case(f"{name} leads to {target}", linked(name, target), done, f"{name}.*damaged|differs"))
  found.append(
    case("its lock leads elsewhere", linked(".lock", "config.json"), lock, r"symbolic link.*\.lock")
  )
  return found + [
    case(
      "metrics.jsonl leads to a device",
      linked("metrics.jsonl", "/dev/zero"),
      lambda run: read_metrics(str(run / "metrics.jsonl")),
      "metrics.jsonl",
    )
  ]

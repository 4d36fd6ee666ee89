"""Runs written in the form of `training.summary`, for the tests of what reports say of them."""

import json
import pathlib

from bionets_jax.report import ledger
from bionets_jax.report.__main__ import main
from bionets_jax.training.config import classification_config, to_json
from configs import ic_voc_detection

TABLE_1 = dict(table="FP-nets, Table 1", row="Filter Pairs", top1_error=7.85, top1_error_std=0.22, seeds=4,
               statistic="best", epochs=200)
ERRORS = (7.61, 8.03, 7.93, 7.72)  # lowest of each seed; the last one is .25 above


def write(path: pathlib.Path, content) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
  return path


def make_summary(best=8.0, *, seed=0, paper=TABLE_1, **changes):
  last = dict(step=78_200, loss=0.4, top1_error=best + 0.25, top5_error=0.3)
  return dict(
      model="fp_resnet32_cifar", task="classification", data="cifar10", seed=seed, parameters=165_786,
      macs=52_600_000, steps=78_200, epochs=200.0, batch_size=128, last=last,
      best=last | dict(step=70_000, top1_error=best), select="last", train_seconds=3600.0,
      total_seconds=4000.0, devices="1 x NVIDIA H200 (gpu)", dtype="bfloat16", commit="0123456789ab",
      inputs=dict(train_examples=50_000, eval_examples=10_000, classes=10), paper=paper) | changes


def make_config(seed=0, **changes):
  config = classification_config()
  config.seed = seed
  config.model.name, config.data.name, config.duration = "fp_resnet32_cifar", "cifar10", "200 epochs"
  config.update_from_flattened_dict(changes)
  return to_json(config)


def make_run(folder, best=8.0, *, seed=0, config=None, metrics=None, **changes):
  write(folder / "summary.json", make_summary(best, seed=seed, **changes))
  write(folder / "config.json", make_config(seed, **(config or {})))
  if metrics:
    write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
  return folder


def make_detector(folder, argument="retinanet,ic_resnet50", ap=78.5, *, seed=0, metrics=None, **changes):
  """A run of IC networks' Table 5 whose highest AP is `ap`, the last one .3 below."""
  config = ic_voc_detection.get_config(argument)
  config.seed = seed
  last = dict(step=12_408, ap50_voc07=ap - 0.3, ap50=ap + 3, ap=ap - 27, ap75=55.0)
  last |= {"class/aeroplane": ap + 4, "class/bicycle": ap - 5}
  summary = make_summary(seed=seed, paper=to_json(config.paper)) | dict(
      task="detection", detector=config.detector.kind, model=config.model.name, data="voc", epochs=12.0,
      batch_size=16, last=last, best=last | dict(step=9_306, ap50_voc07=ap), parameters=36_000_000,
      macs=98_000_000_000, inputs=dict(train_examples=16_551, eval_examples=4_952, classes=20))
  write(folder / "summary.json", summary | changes)
  write(folder / "config.json", to_json(config))
  if metrics:
    write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
  return folder


def make_sweep(folder, errors=ERRORS, **changes):
  for seed, error in enumerate(errors):
    make_run(folder / f"seed_{seed}", error, seed=seed, **changes)
  return folder


def only(workdir):
  (experiment,) = ledger.collect([str(workdir)])
  return experiment


def report(capsys, *arguments):
  status = main(["results", *map(str, arguments)])
  out = capsys.readouterr()
  return status, out.out, out.err

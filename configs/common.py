"""What the config files share: recipes, the reading of arguments, studies, smoke variants.

Not a config: it has no get_config.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections

from bionets_jax.training.config import classification_config, nearest

# An IC network that is trained from its initialisation: no factor in front of the inner response, and an
# adjustment weight whose response is about as large as the convolution's.
IC = dict(alpha="1.0", adjust_init="scaled")
# One that grows from a plain network: the factor starts at 0.
IC_GROWN = dict(alpha="learned", adjust_init="scaled")


def choose(argument: str, choices: Collection[str], usage: str = "") -> tuple[str, bool]:
  """Reads 'CHOICE' or 'CHOICE,smoke'.

  Args:
    argument: what stands behind the colon of --config.
    choices: what may stand there.
    usage: the choices in words; default: all of them.

  Returns:
    (choice, whether ',smoke' was there).

  Raises:
    ValueError: for anything else, with the nearest choices.
  """
  choice = argument.removesuffix(",smoke")
  if choice not in choices:
    raise ValueError(f"argument {argument!r}{nearest(choice, choices)}: give {usage or ' | '.join(choices)}; "
                     "and ',smoke' behind it for a trial")
  return choice, choice != argument


def network_or_study(
    argument: str, networks: Collection[str], studies: Mapping[str, tuple[str, Collection[str]]],
    make: Callable[[str], ml_collections.ConfigDict],
) -> ml_collections.ConfigDict:
  """The config of one network, or of a study of several, as the argument says.

  Args:
    argument: see `choose`.
    networks: what `make` takes.
    studies: argument -> (title, networks).
    make: name of a network -> config of its run.
  """
  choice, trial = choose(argument, (*networks, *studies))
  if choice in studies:
    title, names = studies[choice]
    config = study(title, {name: make(name) for name in names})
  else:
    config = make(choice)
  return smoke(config) if trial else config


def study(title: str, runs: Mapping[str, ml_collections.ConfigDict]) -> ml_collections.ConfigDict:
  """Several runs, made in this order, under one title."""
  config = ml_collections.ConfigDict()
  config.title = title
  config.runs = ml_collections.ConfigDict(dict(runs), sort_keys=False)  # a teacher comes before its student
  return config


def paper(table: str, row: str, **values: Any) -> ml_collections.ConfigDict:
  """A paper's numbers for a run, and what they are of; those that are None are left out.

  Args:
    table: with the name of the paper.
    row: as it is called there.
    **values: `top1_error`, `top1_error_std`, `top5_error`, `top1_error_10crop`, `top5_error_10crop` in
      percent, of detectors `ap50_voc07`; `statistic`, which of a run's numbers compares with them: 'best'
      (of all evaluations), 'last' or 'test'; `seeds`, how many runs they are the mean of; `params`, as
      printed; `gflops`; `note`, what a reader should know of them. A run that departs from `data`,
      `epochs`, `batch_size`, `train_examples`, `eval_examples` or `test_examples` is not compared.
  """
  return ml_collections.ConfigDict(
      dict(table=table, row=row) | {k: v for k, v in values.items() if v is not None})


def cifar10(
    name: str, options: Mapping[str, Any] | None = None, *,
    config: ml_collections.ConfigDict | None = None,
) -> ml_collections.ConfigDict:
  """CIFAR-10 as pytorch_resnet_cifar10 trains on it.

  SGD with momentum 0.9 and weight decay 1e-4 on all parameters, batch 128 with the last one of an epoch
  smaller, 200 epochs at 0.1, 0.01 from epoch 100 and 0.001 from epoch 150; crops of the zero-padded image
  and flips; ImageNet's mean and deviation.

  Args:
    name: of the network.
    options: its options.
    config: to fill in; default `classification_config()`.
  """
  config = config or classification_config()
  _set_model(config, name, options)
  config.data.name = "cifar10"
  config.data.train_transform = "pad_crop(4)|flip"
  config.data.drop_remainder = False
  config.batch_size = 128
  config.eval_batch_size = 1000
  config.duration = "200 epochs"
  config.schedule.lr = 0.1
  config.schedule.boundaries = (100, 150)
  return config


def imagenet(
    name: str, options: Mapping[str, Any] | None = None, *,
    config: ml_collections.ConfigDict | None = None,
) -> ml_collections.ConfigDict:
  """ImageNet as PyTorch's example trains on it.

  SGD with momentum 0.9 and weight decay 1e-4 on all parameters, batch 256, 90 epochs, rate 0.1 divided by 10
  every 30; a random part of the image at 224 pixels and flips; evaluated on the centre of the image whose
  shorter side is 256. The arguments are those of `cifar10`.
  """
  config = config or classification_config()
  _set_model(config, name, options)
  config.data.name = "imagenet2012"
  config.data.eval_split = "validation"
  config.data.train_transform = "random_resized_crop(224)|flip"
  config.data.eval_transform = "resize(256)|center_crop(224)"
  config.batch_size = 256
  config.duration = "90 epochs"
  config.schedule.lr = 0.1
  config.schedule.boundaries = (30, 60)
  return config


def _set_model(config: ml_collections.ConfigDict, name: str, options: Mapping[str, Any] | None) -> None:
  config.model.name = name
  config.model.options = ml_collections.ConfigDict(dict(options or {}))


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A few steps of the same code that need no file.

  Narrow networks on made-up images, a seventh as wide where a transform fixes their size; one seed, and
  no number of a paper: there is nothing to compare. A student whose teacher is a file gets one: a run
  before it.

  Args:
    config: of a run or of a study; is changed.

  Returns:
    The run, or a study.
  """
  from bionets_jax import models  # late, so that a mistake in an argument need not wait for it

  alone = "runs" not in config
  runs: dict[str, ml_collections.ConfigDict] = {}
  for name, run in [(config.model.name, config)] if alone else config.runs.items():
    if run.task == "wld" and not run.teacher.weights:
      teacher = models.base_name(run.model.name)
      if teacher not in runs:
        options = {k: v for k, v in run.model.options.items() if k not in IC_GROWN}
        runs[teacher] = imagenet(teacher, options)
        runs[teacher].data.update(
            {k: run.data[k] for k in ("train_transform", "eval_transform")})
        _shrink(runs[teacher])
      run.teacher.weights = f"run:{teacher}"
    runs[name] = _shrink(run)
  if alone and len(runs) == 1:
    return config
  return study("smoke variant" if alone else f"{config.title}, smoke variant", runs)


_SMALL_DETECTORS = {
    "retinanet": dict(tower_depth=1, anchor_scale=2.0),
    "faster_rcnn": dict(anchor_scale=4.0, width=16, proposals_train=20, proposals_test=10, anchor_samples=16, region_samples=8)}


def _shrink(run: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  with run.unlocked():
    run.model.options.update(narrow(run.model.name))
    run.paper = ml_collections.ConfigDict()
    if run.task == "detection":
      run.model.options.stage_sizes = (1, 1, 1, 1)  # a pyramid stands on four stages
      run.model.weights, run.frozen, run.batch_norm = "", "", "global"  # there are none to keep
      run.data.mean, run.data.std = run.data.mean or (0.5,), run.data.std or (0.25,)
      run.detector.options.update(dict(channels=8, limit=10) | _SMALL_DETECTORS[run.detector.kind])
      run.data.train_transform, run.data.eval_transform = "flip|letterbox(64, 64)", "letterbox(64, 64)"
  for key in ("train_transform", "eval_transform", "test_transform"):
    run.data[key] = re.sub(r"(?<![\d.])\d{3}(?![\d.])", lambda m: str(int(m[0]) // 7), run.data[key])
  run.data.name = f"generated/{run.data.name.removeprefix('generated/')}"
  run.data.workers = 0
  run.data.drop_remainder = True
  run.seeds = ()
  run.batch_size, run.eval_batch_size = 8, 16
  run.duration = "3 steps"  # the fewest that a test can stop half-way
  run.log_every = run.eval_every = "1 steps"
  return run


def narrow(name: str) -> dict[str, Any]:
  """Options that leave of a network one narrow block in each of two or three stages (EfficientNet: of one).

  Args:
    name: of `bionets_jax.create_model`.
  """
  from bionets_jax import models

  full = models.create_model(name)
  if isinstance(full, models.ResNet):
    if name.endswith("_cifar"):  # whose FP-blocks are placed by three bits
      return dict(stage_sizes=(1, 1, 1), width=8) | ({"fp_blocks": 1} if full.fp_layers else {})
    options: dict[str, Any] = dict(stage_sizes=(1, 1), width=8)
    if full.fp_layers:
      options |= dict(fp_layers=full.fp_layers[:2], fp_blocks=1)
    if full.se_reduction:
      options |= dict(se_reduction=1)
    return options
  if isinstance(full, models.VGG):
    return dict(stage_sizes=(2, 1), width=8)
  if isinstance(full, models.MobileNet):
    return dict(stage_sizes=(1, 1), width=8)
  # Channels 16, 32 and 128 at the top; 96 inside the block, which has groups in a kEffNet.
  return dict(stages=[[3, 1, 160, 320, 6, 2]], width=0.1, depth=1.0)

"""Your own images: a folder with a folder of images for each class.

    photos/daisy/*.jpg  photos/rose/*.jpg ...

    python launch.py --config=configs/own_images.py --config.data.dir=photos

trains an IC-ResNet-18 that starts as torchvision's ResNet-18: its weights are downloaded once (45 MB), the IC
units begin at alpha 0, where the two networks are the same, and the head is new. The argument says what else
may be trained, and from what:

    ic_resnet18            from the published weights of the plain network: resnet18, 34, 50, 101, with and
                           without ic_ in front
    ic_resnet18,scratch    from nothing: these, fp_resnet50, efficientnet_ and keffnet_ b0 to b7, and
                           ic_efficientnet_ b0 to b2
    ic_resnet18,wld        a study of two runs: the plain network fine-tuned (`base`), and its IC twin grown
                           from that by weak logit distillation (`ic_wld`), as the paper does it;
                           --config.runs.base.data.dir=photos sets the folder of both, and so do train_split
                           and eval_split

80 % of each class are trained on and 20 % held out, by the files' names: 'all[:80%]' and 'all[80%:]'. Where
several pictures show the same thing, it would be in both parts: then sort them yourself, into
photos/train/CLASS and photos/val/CLASS, and add --config.data.train_split=train
--config.data.eval_split=val. A file that is no readable image stops the run by name;
--config.data.max_bad_records=10 skips up to ten.

20 epochs (from nothing 100) of crops of 224 pixels in batches of 32, at a rate of 0.01 (0.05) that rises for
an epoch (five) and falls as a cosine. These are values to begin with and in no paper.

Afterwards, with WORKDIR the folder that the run names:

    python -m bionets_jax.heatmaps photos/daisy/*.jpg --weights=WORKDIR
    python -m bionets_jax.report html WORKDIR
    python -m bionets_jax.weights export WORKDIR --to=safetensors

Smoke variant, a few steps of the same code without any file: ...py:ic_resnet18,scratch,smoke
"""

import re

import ml_collections

from bionets_jax.training.config import classification_config, wld_config
from configs import common

# For 224 pixels and more.
_NETWORKS = re.compile(r"(ic_|fp_)?resnet\d+(_[bc])?|((ic_)?efficientnet|keffnet)_b\d")
# By torchvision; IC networks start from the plain ones.
_PUBLISHED = re.compile(r"(ic_)?resnet(18|34|50|50_b|50_c|101)")


def get_config(argument: str = "ic_resnet18") -> ml_collections.ConfigDict:
  from bionets_jax import models  # late, as in common.smoke

  networks = [name for name in models.list_models() if _NETWORKS.fullmatch(name)]
  published = [name for name in networks if _PUBLISHED.fullmatch(name)]
  choices = [*published, *(f"{name},scratch" for name in networks),
             *(f"{name},wld" for name in published if name.startswith("ic_"))]
  choice, smoke = common.choose(
      argument, choices, "a network, such as ic_resnet18, perhaps with ',scratch' or ',wld' behind it")
  name, _, how = choice.partition(",")
  base = models.base_name(name)
  if how == "wld":
    plain = _fine_tuned(base, base)
    twin = _run(wld_config(), name, common.IC_GROWN)
    twin.teacher.weights = "run:base"
    config = common.study("Own images: the plain network, and its IC twin by weak logit distillation",
                          dict(base=plain, ic_wld=twin))
    for key in ("dir", "train_split", "eval_split"):
      twin.data[key] = plain.data.get_ref(key)  # given once, for both
  elif how == "scratch":
    config = _run(classification_config(), name, common.IC if name.startswith("ic_") else {})
    config.duration, config.schedule.lr, config.schedule.warmup = "100 epochs", 0.05, "5 epochs"
  else:
    config = _fine_tuned(name, base)
  return _smoke(config) if smoke else config


def _run(config: ml_collections.ConfigDict, name: str, options: dict[str, str]) -> ml_collections.ConfigDict:
  config.model.name = name
  config.model.options = ml_collections.ConfigDict(options)
  config.data.name = "folder"
  config.data.train_split, config.data.eval_split = "all[:80%]", "all[80%:]"
  config.data.train_transform = "random_resized_crop(224)|flip"
  config.data.eval_transform = "resize(256)|center_crop(224)"
  config.batch_size = 32
  config.duration = "20 epochs"
  config.schedule.kind = "cosine"
  config.schedule.lr = 0.01
  config.schedule.warmup = "1 epochs"
  config.log_every = "1 epochs"
  return config


def _fine_tuned(name: str, base: str) -> ml_collections.ConfigDict:
  config = _run(classification_config(), name, {} if name == base else common.IC_GROWN)
  config.model.weights = f"torchvision://{base}"
  config.data.mean, config.data.std = (), ()  # those of the weights
  return config


def _smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Without files: the made-up images are ImageNet's, and there is nothing published to start from."""
  runs = config.runs.values() if "runs" in config else [config]
  for run in runs:
    run.data.name, run.data.train_split, run.data.eval_split = "imagenet2012", "train", "validation"
    if run.task == "classification":
      run.model.weights = ""
      run.data.mean, run.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  return common.smoke(config)

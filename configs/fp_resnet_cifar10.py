"""FP-nets, Figures 2 and 3 and Table 1: ResNets on CIFAR-10 with FP-blocks in place of whole stages.

The argument names a study, which makes all of its runs with seeds 0 to 3, or one network, with seed 0:

    figure2   ResNet-20 and -32, and FP-ResNet-32 of 100, 010, 001, 110, 101 and 011
    figure3   ResNet-20, -32 and -44, and FP-ResNet-20, -32 and -44 of 001
    table1    FP-ResNet-32 of 001 with single filters and with filter pairs

    argument               parameters   test error in percent, as printed
    resnet20                  269,722   8.27   (pytorch_resnet_cifar10's own; the paper shows its
    resnet32                  464,154   7.37    ResNets in figures only)
    resnet44                  658,586   6.90
    resnet56                  853,018   6.61
    resnet32,001              165,786   7.85 +- 0.22   Table 1, "Filter Pairs", 166 K
    resnet32,001,single       162,330   8.25 +- 0.17   Table 1, "Single Filter ReLU", 162 K
    resnet32,100              445,882   the others are points in the figures, without a number
    resnet32,010              391,258
    resnet32,110              372,986
    resnet32,101              147,514
    resnet32,011               92,890
    resnet20,001               81,178
    resnet44,001              250,394
    ic_resnet20 ...           300,762   the ResNets as IC networks, in no paper

    python launch.py --config=configs/fp_resnet_cifar10.py:table1

with TFDS_DATA_DIR=DIR in the environment, or, for a single network, --config.data.dir=DIR. CIFAR-10 must
lie there in ArrayRecord form; if it does not, the error names the command that prepares it. A run is 200
epochs of 50,000 images of 32x32 pixels: 50 minutes on an RTX 2080 in the paper; six to nine minutes an
epoch for ResNet-20 on two CPU cores here.

The bits say which of the three stages FP-blocks replace; all six of the paper work with resnet20, 32 and
44, and ',single' with each. The error that the paper reports is the lowest over the 200 epochs, on the test
set, meaned over four or eight seeds: summary.json has that one ("best") and the one after the last step
("last"), which is what one would get without looking at the test set 200 times.

The paper gives: 200 epochs, SGD with momentum 0.9, batch 128, rate 0.1, 0.01 after 100 epochs and 0.001
after 150; otherwise "similar to" pytorch_resnet_cifar10, from where the rest comes: weight decay 1e-4 on
all parameters, the last batch of an epoch smaller, crops of the zero-padded image and flips, ImageNet's
mean and deviation, initialisation. It leaves open: the pool that halves the resolution (here 2x2), where
norm and ReLU of the single filter stand (here norm first), and how many seeds each point has (here four).

Smoke variant, a few steps of the same code without any data: ...py:resnet32,001,smoke
"""

import ml_collections

from configs import common

_DEPTHS = 20, 32, 44, 56
_BITS = "100", "010", "001", "110", "101", "011"
_PUBLISHED = {"resnet20": 8.27, "resnet32": 7.37, "resnet44": 6.90, "resnet56": 6.61}
_FIGURE_2 = ("resnet20", "resnet32", *(f"resnet32,{bits}" for bits in _BITS))
_FIGURE_3 = ("resnet20", "resnet32", "resnet44", "resnet20,001", "resnet32,001", "resnet44,001")
_TABLE_1 = {"resnet32,001,single": ("ResNet-32 001 Single Filter ReLU", 8.25, 0.17, "162 K"),
            "resnet32,001": ("ResNet-32 001 Filter Pairs", 7.85, 0.22, "166 K")}
_STUDIES = {"figure2": ("FP-nets, Figure 2", _FIGURE_2), "figure3": ("FP-nets, Figure 3", _FIGURE_3),
            "table1": ("FP-nets, Table 1", tuple(_TABLE_1))}
_NETWORKS = (
    *(f"{unit}resnet{depth}" for depth in _DEPTHS for unit in ("", "ic_")),
    *(f"resnet{depth},{bits}{end}" for depth in _DEPTHS[:3] for bits in _BITS for end in ("", ",single")))
_USAGE = ("figure2, figure3, table1, resnet20 (or 32, 44, 56), ic_resnet20 ..., resnet32,001 (resnet20, 32 "
          f"or 44 and one of {', '.join(_BITS)}) or resnet32,001,single")


def get_config(argument: str = "resnet32,001") -> ml_collections.ConfigDict:
  choice, smoke = common.choose(argument, (*_STUDIES, *_NETWORKS), _USAGE)
  if choice in _STUDIES:
    table, networks = _STUDIES[choice]
    runs = {_run_name(network): _run(network, table) for network in networks}
    for run in runs.values():
      run.seeds = (0, 1, 2, 3)
    config = common.study(f"{table}, CIFAR-10", runs)
  else:
    config = _run(choice, "")
  return common.smoke(config) if smoke else config


def _run_name(network: str) -> str:
  """fp_resnet32_001_single for resnet32,001,single."""
  return f"fp_{network.replace(',', '_')}" if "," in network else network


def _run(network: str, table: str) -> ml_collections.ConfigDict:
  base, *unit = network.split(",")
  options = dict(common.IC) if base.startswith("ic_") else {}
  if unit:
    options = dict(fp_layers=unit[0]) | ({"single_filter": True} if "single" in unit else {})
  config = common.cifar10(f"fp_{base}_cifar" if unit else f"{base}_cifar", options)
  how = dict(statistic="best", data="cifar10", epochs=200, batch_size=128, seeds=4)
  if network in _TABLE_1:
    row, error, deviation, size = _TABLE_1[network]
    config.paper = common.paper(
        "FP-nets, Table 1", row, top1_error=error, top1_error_std=deviation, params=size, **how)
  elif network in _PUBLISHED and table != "FP-nets, Table 1":
    config.paper = common.paper(
        "pytorch_resnet_cifar10, published checkpoint", base, top1_error=_PUBLISHED[network],
        **how | dict(statistic="last", seeds=1))
  elif table or network in (*_FIGURE_2, *_FIGURE_3):
    table = table or _STUDIES["figure2" if network in _FIGURE_2 else "figure3"][0]
    config.paper = common.paper(table, network, **how)
  return config

"""What the three papers print about the size of their networks, and how each number is counted here.

A row's `table` is where its paper prints the number. 'recomputed' are exact counts that no paper prints:
those behind the rounded ones, and of networks for which a paper gives errors only. They were made apart
from this code, by a count that agrees with ptflops and Keras on the networks that exist there.
"""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from bionets_jax.counting import LayerCount, count_macs, count_parameters, measure
from bionets_jax.layers import GroupedPointwise
from bionets_jax.models import create_model

Count = Callable[[], int | Fraction]


class Row(NamedTuple):
  """One number of a paper.

  Attributes:
    table: where it is printed.
    network: whose it is, in the names of `create_model`.
    quantity: what is counted.
    printed: as the paper has it: a number, with unit K, M, G or % if it has one.
    count: computes ours, in ones (or in per cent).
    rule: how the paper came to the printed digits: 'rounded', 'truncated' or 'rounded to tens'.
    note: what a reader should know.
  """

  table: str
  network: str
  quantity: str
  printed: str
  count: Count
  rule: str = "rounded"
  note: str = ""


@functools.cache
def _measure(name: str, num_classes: int | None, size: int, **options: Any) -> tuple[int, list[LayerCount]]:
  return measure(create_model(name, num_classes, **options), size)


def parameters(name: str, num_classes: int | None = None, size: int = 224, **options: Any) -> int:
  """Parameters of `create_model(name, num_classes, **options)`: the same at any size, but where the
  multiply-adds are wanted too the network is traced once if the size is theirs."""
  return _measure(name, num_classes, size, **options)[0]


def operations(name: str, size: int, *, include_box: bool = False, **options: Any) -> int:
  """Multiply-adds of `create_model(name, **options)`."""
  return sum(layer.macs + include_box * layer.box_adds
             for layer in _measure(name, None, size, **options)[1])


@functools.cache
def ptflops(name: str) -> int:
  """The same at 224 pixels as ptflops counts."""
  return count_macs(create_model(name), 224, convention="ptflops")


def _lazy(function: Callable[..., int], *args: Any, **options: Any) -> Count:
  return functools.partial(function, *args, **options)


def _minus(a: Count, b: Count) -> Count:
  return lambda: a() - b()


def _saved(less: Count, more: Count) -> Count:
  """By how many per cent `less` is smaller."""
  return lambda: 100 * (1 - Fraction(less()) / Fraction(more()))


# IC networks and weak logit distillation --------------------------------------------------------

_NO_BIASES = dict(use_bias=False, use_inner_bias=False)
ALL, ADJUST = "parameters with W', b1, b2", "parameters with W'"

# network: printed GFLOPs and millions; exact parameters, MACs, ptflops.
_IMAGENET = {
    "resnet18": ("1.82 G", "11.7 M", 11_689_512, 1_814_073_344, 1_822_177_768),
    "resnet34": ("3.68 G", "21.8 M", 21_797_672, 3_663_761_408, 3_675_629_032),
    "resnet50": ("4.12 G", "25.6 M", 25_557_032, 4_089_184_256, 4_121_925_096),
    "resnet101": (None, None, 44_549_160, 7_801_405_440, 7_849_500_136),
    "ic_resnet18": ("2.01 G", "12.9 M", 12_917_800, 2_000_326_656, 2_011_441_640),
    "ic_resnet34": ("4.07 G", "24.2 M", 24_155_688, 4_055_535_616, 4_072_922_600),
    "ic_resnet50": ("4.33 G", "26.8 M", 26_822_056, 4_294_705_152, 4_330_205_672),
    "ic_resnet50_b": ("5.27 G", "31.2 M", 31_159_080, 5_232_394_240, 5_271_708_136),
    "ic_resnet50_c": ("6.10 G", "36.2 M", 36_219_176, 6_054_477_824, 6_104_830_440)}
# network: without b1 and b2, MACs with the box sums.
_IC_IMAGENET = {
    "ic_resnet18": (12_910_120, 2_013_083_904), "ic_resnet34": (24_140_584, 4_079_582_464),
    "ic_resnet50": (26_814_504, 4_307_123_712), "ic_resnet50_b": (31_143_976, 5_244_812_800),
    "ic_resnet50_c": (36_173_864, 6_066_896_384)}
_TABLE_3 = ("ic_resnet50", "ic_resnet50_b", "ic_resnet50_c")

_VGG_NOTE = "the biases of the convolutions are b2; with a second one beside each {}"
_PREACT = dict(block="preact")
# network, quantity, parameters, options, note
_CIFAR = (
    ("resnet20_cifar", "parameters", 269_722, {}, ""),
    ("ic_resnet20_cifar", ADJUST, 299_418, _NO_BIASES, ""), ("ic_resnet20_cifar", ALL, 300_762, {}, ""),
    ("resnet32_cifar", "parameters", 464_154, {}, ""),
    ("ic_resnet32_cifar", ADJUST, 515_354, _NO_BIASES, ""), ("ic_resnet32_cifar", ALL, 517_594, {}, ""),
    ("resnet44_cifar", "parameters", 658_586, {}, ""),
    ("ic_resnet44_cifar", ADJUST, 731_290, _NO_BIASES, ""), ("ic_resnet44_cifar", ALL, 734_426, {}, ""),
    ("resnet56_cifar", "parameters", 853_018, {}, ""),
    ("ic_resnet56_cifar", ADJUST, 947_226, _NO_BIASES, ""), ("ic_resnet56_cifar", ALL, 951_258, {}, ""),
    ("vgg16", "parameters", 14_728_266, {}, ""),
    ("ic_vgg16", ADJUST, 16_362_570, dict(use_inner_bias=False), ""),
    ("ic_vgg16", "parameters with W', b1", 16_366_730, {}, _VGG_NOTE.format("16,370,890")),
    ("vgg19", "parameters", 20_040_522, {}, ""),
    ("ic_vgg19", ADJUST, 22_264_650, dict(use_inner_bias=False), ""),
    ("ic_vgg19", "parameters with W', b1", 22_270_090, {}, _VGG_NOTE.format("22,275,530")),
    ("mobilenet", "parameters", 3_217_226, {}, ""),
    ("ic_mobilenet", ADJUST, 6_356_810, _NO_BIASES, "ic_placement='pair', as the paper says"),
    ("ic_mobilenet", ALL, 6_368_714, {}, "ic_placement='pair', as the paper says"),
    ("ic_mobilenet", ADJUST, 3_222_186, dict(ic_placement="depthwise", **_NO_BIASES),
     "ic_placement='depthwise'"),
    ("se_resnet18", "parameters", 11_263_042, {}, ""),
    ("ic_se_resnet18", ADJUST, 12_483_650, _NO_BIASES, ""), ("ic_se_resnet18", ALL, 12_491_330, {}, ""),
    ("se_resnet18", "parameters", 11_260_354, _PREACT, "block='preact'"),
    ("ic_se_resnet18", ADJUST, 12_480_962, _PREACT | _NO_BIASES, "block='preact'"),
    ("ic_se_resnet18", ALL, 12_488_642, _PREACT, "block='preact'"),
    ("se_resnet50", "parameters", 26_051_834, {}, ""),
    ("ic_se_resnet50", ADJUST, 27_309_306, _NO_BIASES, ""), ("ic_se_resnet50", ALL, 27_316_858, {}, ""),
    ("resnext29_2x64d", "parameters", 9_128_778, {}, ""),
    ("resnext29_2x64d", "parameters", 9_130_314, dict(stem="3x3"), "stem='3x3'"),
    ("ic_resnext29_2x64d", ADJUST, 9_644_874, _NO_BIASES, "W' in the groups of W"),
    ("ic_resnext29_2x64d", ALL, 9_650_250, {}, "W' in the groups of W"),
    ("ic_resnext29_2x64d", ADJUST, 10_160_970, dict(adjust_groups=1, **_NO_BIASES),
     "dense W': adjust_groups=1"),
    ("resnet18", "parameters", 11_173_962, dict(num_classes=10, stem="3x3"), "for CIFAR: stem='3x3'"),
    ("resnet50", "parameters", 23_520_842, dict(num_classes=10, stem="3x3"), "for CIFAR: stem='3x3'"))

# size: pixels, parameters, MACs; W' around pairs: parameters, extra MACs; in the depthwise layers: the same.
_EFFICIENTNET = {
    "b0": (224, 5_288_548, 385_814_752, 6_771_684, "186.8 M", 5_297_508, "36.8 M"),
    "b1": (240, 7_794_184, 686_802_832, 10_239_880, "348.0 M", 7_807_768, "64.5 M"),
    "b2": (260, 9_109_994, 993_561_872, 12_012_650, "502.2 M", 9_124_778, "85.1 M")}


def ic_rows() -> list[Row]:
  """IC networks: Tables 1 and 3, section 4.1, and the exact counts, those of Table 4's networks too."""
  rows = []
  for name, (giga, mega, *_) in _IMAGENET.items():
    tables = ["Table 1"] * (name[-2:] not in ("_b", "_c")) + ["Table 3"] * (name in _TABLE_3)
    for table in tables if giga else ():
      rows += [Row(table, name, "GFLOPs by ptflops", giga, _lazy(ptflops, name)),
               Row(table, name, "parameters", mega, _lazy(parameters, name))]
  for depth, printed in ((18, "10.44 %"), (34, "10.60 %"), (50, "5.10 %")):
    rows.append(Row("Section 4.1", f"ic_resnet{depth}", "extra GFLOPs", printed,
                    functools.partial(_extra, f"ic_resnet{depth}", f"resnet{depth}"),
                    note="of the GFLOPs as rounded in Table 1"))
  for name, (_, _, size, macs, flops) in _IMAGENET.items():
    rows += [_exact(name, ALL if name in _IC_IMAGENET else "parameters", size),
             Row("recomputed", name, "MACs", f"{macs:,}", _lazy(operations, name, 224)),
             Row("recomputed", name, "ptflops", f"{flops:,}", _lazy(ptflops, name))]
    if name in _IC_IMAGENET:
      literal, with_box = _IC_IMAGENET[name]
      rows += [_exact(name, ADJUST, literal, _NO_BIASES),
               Row("recomputed", name, "MACs with box sums", f"{with_box:,}",
                   _lazy(operations, name, 224, include_box=True))]
  rows += [_exact(*row) for row in _CIFAR]
  for size, (pixels, plain, macs, pair, pair_macs, depthwise, depthwise_macs) in _EFFICIENTNET.items():
    # The reference pads as TensorFlow does. On odd sides the Keras padding leaves a pixel less.
    name, here = f"efficientnet_{size}", dict(size=pixels, flavour="tf")
    base = _lazy(operations, name, **here)
    rows += [_exact(name, "parameters", plain, here),
             Row("recomputed", name, "MACs", f"{macs:,}", base, note="flavour='tf'")]
    for placement, total, extra in (("pair", pair, pair_macs), ("depthwise", depthwise, depthwise_macs)):
      options = dict(here, ic_placement=placement, **_NO_BIASES)
      ours = _lazy(operations, f"ic_{name}", include_box=True, **options)
      note = f"ic_placement={placement!r}"
      rows += [_exact(f"ic_{name}", ADJUST, total, options, note),
               Row("recomputed", f"ic_{name}", "extra MACs with box sums", extra, _minus(ours, base),
                   note=f"{note}, flavour='tf'")]
  return rows


def _extra(more: str, less: str) -> Fraction:
  a, b = (round(Fraction(ptflops(name), 10**9), 2) for name in (more, less))
  return 100 * (a / b - 1)


def _exact(
    name: str, quantity: str, value: int, options: dict[str, Any] | None = None, note: str = ""
) -> Row:
  return Row("recomputed", name, quantity, f"{value:,}", _lazy(parameters, name, **(options or {})),
             note=note)


# FP-nets ----------------------------------------------------------------------------------------

_FP_EXACT = (
    ("fp_resnet20_cifar", 81_178, {}), ("fp_resnet20_cifar", 80_026, dict(single_filter=True)),
    ("fp_resnet32_cifar", 165_786, {}), ("fp_resnet32_cifar", 162_330, dict(single_filter=True)),
    ("fp_resnet44_cifar", 250_394, {}), ("fp_resnet44_cifar", 244_634, dict(single_filter=True)),
    *(("fp_resnet32_cifar", size, dict(fp_layers=layers)) for layers, size in {
        "100": 445_882, "010": 391_258, "001": 165_786, "110": 372_986, "101": 147_514, "011": 92_890,
        "111": 74_618}.items()),
    ("resnet18", 11_176_512, dict(num_classes=0)), ("resnet34", 21_284_672, dict(num_classes=0)),
    ("resnet50", 23_508_032, dict(num_classes=0)), ("fp_resnet50", 16_113_704, {}),
    ("fp_resnet50", 14_064_704, dict(num_classes=0)))
# Counts that the authors published with the journal version of their networks.
_JOURNAL = dict(fp_layers="111", fp_placement="first", variant="journal")
_JOURNAL_50 = dict(fp_layers="1111", fp_placement="first", fp_blocks=None, variant="journal")
_FP_JOURNAL = (
    *((f"fp_resnet{depth}_cifar", size, _JOURNAL | dict(block="pyramid"))
      for depth, size in ((20, 217_082), (32, 411_962), (44, 606_842))),
    *((f"fp_resnet{depth}_cifar", size, _JOURNAL)
      for depth, size in ((20, 216_634), (32, 411_066), (44, 605_498))),
    *((f"resnet{depth}_cifar", size, dict(block="pyramid"))
      for depth, size in ((20, 270_298), (32, 465_178), (44, 660_058), (56, 854_938))),
    ("fp_resnet50", 25_974_568, _JOURNAL_50), ("fp_resnet50", 24_289_024, _JOURNAL_50 | dict(expansion=0.8)))
_FP_MACS = {"resnet20_cifar": "40.6 M", "resnet32_cifar": "68.9 M", "resnet44_cifar": "97.2 M",
            "fp_resnet20_cifar": "31.3 M", "fp_resnet32_cifar": "52.6 M", "fp_resnet44_cifar": "73.8 M"}


def fp_rows() -> list[Row]:
  """FP-nets: Tables 1 and 2, the numbers in the text, and the exact counts."""
  p = functools.partial(_lazy, parameters)
  pairs, single = p("fp_resnet32_cifar"), p("fp_resnet32_cifar", single_filter=True)
  rows = [
      Row("Section 3.1", "resnet20_cifar", "parameters", "270 K", p("resnet20_cifar"), "rounded to tens"),
      Row("Section 3.1", "resnet44_cifar", "parameters", "660 K", p("resnet44_cifar"), "rounded to tens"),
      Row("Table 1", "fp_resnet32_cifar", "parameters, single filter", "162 K", single),
      Row("Table 1", "fp_resnet32_cifar", "parameters, filter pairs", "166 K", pairs),
      Row("Section 4", "fp_resnet32_cifar", "pairs - single filter", "3,456", _minus(pairs, single)),
      Row("Table 2", "resnet18", "parameters", "11 M", p("resnet18"), "truncated",
          "truncated; without the last layer 11,176,512"),
      Row("Table 2", "resnet34", "parameters", "21 M", p("resnet34"), "truncated",
          "truncated; without the last layer 21,284,672"),
      Row("Table 2", "resnet50", "parameters without head", "23 M", p("resnet50", 0), "truncated",
          "truncated, and without the last layer, with which it has 25,557,032"),
      Row("Table 2", "fp_resnet50", "parameters", "16 M", p("fp_resnet50"),
          note="rounded, and with the last layer, unlike the row above; without it 14,064,704"),
      Row("Section 4", "fp_resnet50", "fewer than resnet34", "5 M", _minus(p("resnet34"), p("fp_resnet50")),
          "truncated", "difference of the numbers in Table 2")]
  for name, size, options in _FP_EXACT:
    layers = options.get("fp_layers", "")
    quantity = ("parameters, single filter" if "single_filter" in options
                else "parameters without head" if "num_classes" in options
                else f"parameters, {layers}" if layers else "parameters")
    note = "the paper left this one out" if layers == "111" else ""
    rows.append(_exact(name, quantity, size, options, note))
  for name, size, options in _FP_JOURNAL:
    words = [f"{key}={options[key]!r}" for key in ("variant", "block", "expansion") if key in options]
    rows.append(_exact(name, "parameters", size, options, f"journal version: {', '.join(words)}"))
  rows += [Row("recomputed", name, "MACs", printed, _lazy(operations, name, 32))
           for name, printed in _FP_MACS.items()]
  return rows


# kEffNet ----------------------------------------------------------------------------------------

_KEFFNET_TABLE_1 = {29: ("4,044,697", "664,041"), 37: ("4,054,945", "674,289"), 10: ("4,020,358", "639,702")}
_KEFFNET_TABLE_2 = {
    "b0": ("4,020,358", "639,702", "84.09 %"), "b1": ("6,525,994", "922,770", "85.86 %"),
    "b2": ("7,715,084", "1,130,344", "85.35 %"), "b3": ("10,711,602", "1,532,902", "85.69 %"),
    "b4": ("17,566,546", "1,952,306", "88.89 %"), "b5": ("28,361,274", "2,633,470", "90.71 %"),
    "b6": ("40,758,754", "4,714,030", "88.43 %"), "b7": ("63,812,570", "4,669,218", "92.68 %")}


def keffnet_rows() -> list[Row]:
  """kEffNet: the example of section 3 and Tables 1 and 2."""
  rows, p = [], functools.partial(_lazy, parameters)
  dense, grouped = (functools.partial(_pointwise, k_type=k) for k in (0, 2))
  rows += [Row("Section 3", "1,024 -> 512 channels", "weights of a 1x1 convolution", "524,288", dense),
           Row("Section 3", "1,024 -> 512 channels", "weights of a kConv", "12,288", grouped),
           Row("Section 3", "1,024 -> 512 channels", "reduction", "97.7 %", _saved(grouped, dense))]
  for classes, numbers in _KEFFNET_TABLE_1.items():
    for name, printed in zip(("efficientnet_b0", "keffnet_b0"), numbers, strict=True):
      rows.append(Row("Table 1", name, f"parameters, {classes} classes", printed, p(name, classes)))
  for size, (plain, grouped, saved) in _KEFFNET_TABLE_2.items():
    names = f"efficientnet_{size}", f"keffnet_{size}"
    rows += [Row("Table 2", name, "parameters, 10 classes", printed, p(name, 10))
             for name, printed in zip(names, (plain, grouped), strict=True)]
    rows.append(Row("Table 2", names[1], "reduction", saved, _saved(p(names[1], 10), p(names[0], 10))))
  rows.append(_exact("keffnet_b0", "parameters, 10 classes", 1_059_202,
                     dict(num_classes=10, min_group_channels=32), "follow-up paper: min_group_channels=32"))
  return rows


@functools.cache
def _pointwise(k_type: int) -> int:
  return count_parameters(GroupedPointwise(512, k_type=k_type), (1, 1, 1024))


PAPERS = {"ic": ("IC networks", ic_rows), "fp": ("FP-nets", fp_rows), "keffnet": ("kEffNet", keffnet_rows)}

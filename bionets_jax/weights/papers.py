"""The papers that a network is from, to be cited with its weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Paper(NamedTuple):
  """A paper. `where` is the rest of its BibTeX entry, field -> value."""

  key: str
  title: str
  authors: str
  year: int
  where: Mapping[str, str]

  def bibtex(self) -> str:
    """Its BibTeX entry."""
    kind = "article" if "journal" in self.where else "misc"
    fields = {"title": f"{{{self.title}}}", "author": self.authors, "year": str(self.year)} | dict(self.where)
    return "\n".join([f"@{kind}{{{self.key},", *(f"  {k} = {{{v}}}," for k, v in fields.items()), "}"])


def _arxiv(number: str) -> dict[str, str]:
  return {"eprint": number, "archivePrefix": "arXiv"}


IC = Paper(
    "an2021ic", "IC Networks: Remodeling the Basic Unit for Convolutional Neural Networks",
    "An, Junyi and Liu, Fengshan and Zhao, Jian and Shen, Furao", 2021, _arxiv("2102.03495"))
FP = Paper(
    "gruening2020feature", "Feature Products Yield Efficient Networks",
    'Gr{\\"u}ning, Philipp and Martinetz, Thomas and Barth, Erhardt', 2020, _arxiv("2008.07930"))
FP_JOURNAL = Paper(
    "gruening2022fp", "{FP}-nets as novel deep networks inspired by vision",
    'Gr{\\"u}ning, Philipp and Martinetz, Thomas and Barth, Erhardt', 2022,
    {"journal": "Journal of Vision", "volume": "22", "number": "1", "pages": "8",
     "doi": "10.1167/jov.22.1.8"})
KEFFNET = Paper(
    "schwarzschuler2021grouped",
    "Grouped Pointwise Convolutions Significantly Reduces Parameters in EfficientNet",
    "Schwarz Schuler, Joao Paulo and Romani, Santiago and Abdel-Nasser, Mohamed and Rashwan, Hatem and Puig, "
    "Domenec", 2021, {})
RESNET = Paper(
    "he2016deep", "Deep Residual Learning for Image Recognition",
    "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian", 2016, _arxiv("1512.03385"))
RESNEXT = Paper(
    "xie2017aggregated", "Aggregated Residual Transformations for Deep Neural Networks",
    "Xie, Saining and Girshick, Ross and Doll{\\'a}r, Piotr and Tu, Zhuowen and He, Kaiming", 2017,
    _arxiv("1611.05431"))
SENET = Paper(
    "hu2018squeeze", "Squeeze-and-Excitation Networks", "Hu, Jie and Shen, Li and Sun, Gang", 2018,
    _arxiv("1709.01507"))
VGG = Paper(
    "simonyan2015very", "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    "Simonyan, Karen and Zisserman, Andrew", 2015, _arxiv("1409.1556"))
MOBILENET = Paper(
    "howard2017mobilenets",
    "{MobileNets}: Efficient Convolutional Neural Networks for Mobile Vision Applications",
    "Howard, Andrew G. and Zhu, Menglong and Chen, Bo and Kalenichenko, Dmitry and Wang, Weijun and Weyand, "
    "Tobias and Andreetto, Marco and Adam, Hartwig", 2017, _arxiv("1704.04861"))
EFFICIENTNET = Paper(
    "tan2019efficientnet", "{EfficientNet}: Rethinking Model Scaling for Convolutional Neural Networks",
    "Tan, Mingxing and Le, Quoc V.", 2019, _arxiv("1905.11946"))

FASTER_RCNN = Paper(
    "ren2015faster", "{Faster} {R-CNN}: Towards Real-Time Object Detection with Region Proposal Networks",
    "Ren, Shaoqing and He, Kaiming and Girshick, Ross and Sun, Jian", 2015, _arxiv("1506.01497"))
RETINANET = Paper(
    "lin2017focal", "Focal Loss for Dense Object Detection",
    "Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Doll{\\'a}r, Piotr", 2017,
    _arxiv("1708.02002"))
FEATURE_PYRAMID = Paper(
    "lin2017feature", "Feature Pyramid Networks for Object Detection",
    "Lin, Tsung-Yi and Doll{\\'a}r, Piotr and Girshick, Ross and He, Kaiming and Hariharan, Bharath and "
    "Belongie, Serge", 2017, _arxiv("1612.03144"))


def papers_of(name: str, options: Mapping[str, Any], task: str = "") -> list[Paper]:
  """The papers of a network's units first, then of the network that they stand in.

  Args:
    name: of the network, or of a detector without its backbone.
    options: of `create_model`.
    task: of the run that trained it; 'wld' is the IC paper's.
  """
  found = []
  if name.startswith("ic_") or task == "wld":
    found.append(IC)
  if name.startswith("fp_") or "1" in str(options.get("fp_layers", "")):
    found.append(FP_JOURNAL if options.get("variant") == "journal" else FP)
  if name.startswith("keffnet"):
    found.append(KEFFNET)
  if "resne" in name:
    found.append(RESNET)
    if "resnext" in name or options.get("groups", 1) > 1:
      found.append(RESNEXT)
    if "se_" in name or options.get("se_reduction"):
      found.append(SENET)
  for part, paper in (("vgg", VGG), ("mobilenet", MOBILENET), ("effnet", EFFICIENTNET),
                      ("efficientnet", EFFICIENTNET), ("faster_rcnn", FASTER_RCNN), ("retinanet", RETINANET),
                      ("faster_rcnn", FEATURE_PYRAMID), ("retinanet", FEATURE_PYRAMID)):
    if part in name:
      found.append(paper)
  return found

"""By which of its numbers a run is compared: the one place for its key, its direction and its words."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Metric(NamedTuple):
  """A number in per cent that runs are compared by.

  Attributes:
    key: in summary.json and config.paper; behind 'eval/' in metrics.jsonl.
    name: in a sentence.
    heading: of a column that stands alone.
    column: of one among others of such numbers.
    noun: what such a number is.
    extreme: what the best one of several evaluations is.
    beside, beside_heading: of the second number that is shown next to it.
    larger: whether a larger one is better.
    runs: what is compared by it.
  """

  key: str
  name: str
  heading: str
  column: str
  noun: str
  extreme: str
  beside: str
  beside_heading: str
  larger: bool
  runs: str


TOP1_ERROR = Metric(
    "top1_error", "top-1 error", "top-1 error %", "error %", "error", "lowest", "top5_error", "top-5 error %",
    False, "Classifiers")
# VOC2007's mean precision at 11 recalls, in which detectors on it are published; beside it COCO's.
AP50_VOC07 = Metric(
    "ap50_voc07", "AP50 (VOC07)", "AP50 %, VOC07", "AP50 %, VOC07", "AP", "highest", "ap", "AP %, COCO", True,
    "Detectors")
OF_CLASS = "class/"  # in front of a class's name: its own AP50_VOC07


def metric_of(run: Mapping[str, Any]) -> Metric:
  """The metric of a run, by the `task` in its summary or config."""
  return AP50_VOC07 if run.get("task") == "detection" else TOP1_ERROR


def network_of(summary: Mapping[str, Any]) -> str:
  """What a run has trained, 'resnet50' or 'retinanet with resnet50'.

  Args:
    summary: of a run, or of several seeds.
  """
  kind = next((one["detector"] for one in (summary, *(summary.get("seeds") or {}).values()) if "detector" in one), "")
  return f"{kind} with {summary['model']}" if kind else summary["model"]

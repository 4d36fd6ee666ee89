"""Detectors in fixed shapes: RetinaNet and Faster R-CNN on any backbone, their parts, and how good they are.

    detector = create_detector('retinanet', 'ic_resnet50', num_classes=20)
    loaded = load(workdir)        # of a finished run
    found = Finder(loaded)(image)

`python -m bionets_jax.detection.predict --help` is the command line.
"""

from typing import TYPE_CHECKING

from bionets_jax.late import late_attributes

if TYPE_CHECKING:
  from bionets_jax.detection.create import DETECTORS, create_detector
  from bionets_jax.detection.finding import Finder
  from bionets_jax.detection.loading import LoadedDetector, load

# Imported late: who needs one of the parts does not wait for all.
_LATE = {
    **dict.fromkeys(("DETECTORS", "create_detector"), "bionets_jax.detection.create"),
    **dict.fromkeys(("LoadedDetector", "load"), "bionets_jax.detection.loading"),
    "Finder": "bionets_jax.detection.finding",
}
__all__ = ["DETECTORS", "Finder", "LoadedDetector", "create_detector", "load"]
__getattr__ = late_attributes(__name__, _LATE, __all__)

"""Heatmaps: which pixels speak for a class, by CAM and Grad-CAM, for any network and layer.

    loaded = bn.weights.load(workdir)
    maps = of_pictures(loaded, [photo])              # uint8 (H, W, 3)
    shown = overlay(seen(loaded, photo), normalised(maps.values)[0])

`python -m bionets_jax.heatmaps --help` is the command line.
"""

from typing import TYPE_CHECKING

from bionets_jax.late import late_attributes

if TYPE_CHECKING:
  from bionets_jax.heatmaps.display import enlarged, normalised, overlay
  from bionets_jax.heatmaps.maps import Maps, cam, grad_cam, layers
  from bionets_jax.heatmaps.pictures import of_pictures, seen

# Imported late: who needs one of the parts does not wait for all.
_LATE = {
    **dict.fromkeys(("Maps", "cam", "grad_cam", "layers"), "bionets_jax.heatmaps.maps"),
    **dict.fromkeys(("enlarged", "normalised", "overlay"), "bionets_jax.heatmaps.display"),
    **dict.fromkeys(("of_pictures", "seen"), "bionets_jax.heatmaps.pictures"),
}
__all__ = ["Maps", "cam", "enlarged", "grad_cam", "layers", "normalised", "of_pictures", "overlay", "seen"]
__getattr__ = late_attributes(__name__, _LATE, __all__)

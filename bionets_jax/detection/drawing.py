"""Pictures of detections: boxes with the names of their classes and their scores."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, told apart with any colour vision; the names tell apart what shares one.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_SHORTEST = 320  # pixels of the shorter side; smaller pictures are enlarged, so that there is room for names,
_LONGEST = 2048  # but not beyond this: the picture of a line would take gigabytes
_DARK, _LIGHT = "#000000", "#FFFFFF"


def draw(
    image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> Image.Image:
  """The image with its detections.

  Args:
    image: uint8 (h, w, 3).
    boxes: (n, 4) in its pixels.
    scores: (n,) of 0..1, shown in percent.
    labels: (n,) int.
    class_names: of the labels.

  Returns:
    RGB, h x w; a small image enlarged by a whole number.
  """
  zoom = max(min(-(-_SHORTEST // min(image.shape[:2])), _LONGEST // max(image.shape[:2])), 1)
  picture = Image.fromarray(np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1))
  pen = ImageDraw.Draw(picture)
  side = min(picture.size)
  thick = max(side // 250, 2)
  font = ImageFont.load_default(max(side / 36, 13))
  taken: list[tuple[float, ...]] = []
  best_last = np.argsort(scores, kind="stable")
  for i in best_last:
    _outline(pen, np.asarray(boxes[i], float) * zoom, COLOURS[labels[i] % len(COLOURS)], thick)
  for i in best_last[::-1]:  # the best choose their places first
    colour = COLOURS[labels[i] % len(COLOURS)]
    text = f"{class_names[labels[i]]} {100 * scores[i]:.0f}"
    taken.append(_name(pen, boxes[i] * zoom, text, colour, font, thick, picture.size, taken))
  return picture


def _outline(pen, box, colour, thick):
  """The box's own edges in its colour between two dark ones, to be seen on any background."""
  x1, y1, x2, y2 = np.round(box).astype(int)
  x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)  # the last pixel is drawn too
  pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_DARK, width=thick + 2)
  pen.rectangle((x1, y1, x2, y2), outline=colour, width=thick)


def _name(pen, box, text, colour, font, thick, size, taken):
  """Writes the name where there is room; returns where, (left, top, right, bottom)."""
  left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
  width, height = right - left + 2 * thick, bottom - top + 2 * thick
  x1, y1, x2, y2 = box
  places = [(x, y) for y in (y1 - height, y1, y2, y2 - height) for x in (x1, x2 - width)]
  most_x, most_y = max(size[0] - width, 0), max(size[1] - height, 0)
  inside = [(min(max(x, 0), most_x), min(max(y, 0), most_y)) for x, y in places]
  free = [(x, y) for x, y in inside if not any(
      x < b[2] and b[0] < x + width and y < b[3] and b[1] < y + height for b in taken)]
  x, y = (free or inside)[0]
  pen.rectangle((x, y, x + width, y + height), fill=colour)
  pen.text((x + thick - left, y + thick - top), text, fill=_on(colour), font=font)
  return x, y, x + width, y + height


def _on(colour):
  """Black or white, whichever is read better on a colour, by WCAG's contrast."""
  channels = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
  luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
  return _DARK if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else _LIGHT

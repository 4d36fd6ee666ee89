"""What is seen of the networks: heatmaps over images that are classified right and wrong, and filters."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bionets_jax.data.decode import decode
from bionets_jax.data.sources import Source, open_source
from bionets_jax.evaluate.examples import check_classes
from bionets_jax.heatmaps import normalised, of_pictures, overlay, seen
from bionets_jax.page.markup import Section, absent, image, paragraph, png, scrolled, text
from bionets_jax.page.networks import ERRORS, Confused, Networks, with_weights
from bionets_jax.report.ledger import Ledger

_SIDE = 96  # pixels that a shown image has at least
_LARGEST = 160
_DPI = 130
_COMMAND = "python -m bionets_jax.heatmaps --weights=WORKDIR --data=NAME --split=SPLIT --examples=0-7"
_READING = (
    "Grad-CAM of the last stage for the class that the network predicts, over what the network gets to see; bright is "
    "what speaks for that class. One row an image, one column a network. The upper rows are images that at least one "
    "of the networks takes for another class, the lower ones images that all get right; both are taken evenly from all "
    "of their kind.")


def heatmaps_section(
    found: Sequence[Confused], networks: Networks, examples: int, stored: bool, say: Callable[[str], None]
) -> Section:
  """Heatmaps of the networks that were evaluated on the same images, side by side.

  Args:
    found: of `networks.confusions`.
    networks: to load them.
    examples: images in all of each data set; half of them are taken for another class, if there are so many.
    stored: True for none.
    say: told of the progress.
  """
  title, parts, notes = "Heatmaps", [], []
  groups: dict[tuple[Any, ...], list[Confused]] = {}
  for c in found if examples and not stored else ():
    # Two folders may have splits and classes of the same names; of other sets a name is enough.
    where = " ".join(c.data[key] for key in ("name", "split", "dir") if key != "dir" or c.data["name"] == "folder")
    groups.setdefault((where, tuple(c.found["class_names"])), []).append(c)
  for (where, class_names), group in groups.items():
    say(f"heatmaps: {where}, {len(group)} network{'s' * (len(group) > 1)}")
    source = _open(group)
    if isinstance(source, str):
      notes.append(f"{where}: {source}")
      continue
    pictures = _choose(source, group, examples)
    columns = []
    for c in group:
      try:
        columns.append((c, *_column(networks.load(c.run), [picture for _, picture, _ in pictures])))
      except ERRORS as error:
        notes.append(f"{c.experiment}: {error}")
    if columns and pictures:
      parts.append(_gallery(where, class_names, pictures, columns))
  notes_html = "".join(paragraph(note, "missing") for note in notes)
  if not parts:
    return absent("heatmaps", title, "of no run here; this draws some:", _COMMAND, notes_html)
  return Section("heatmaps", title, paragraph(_READING, "reading") + "".join(parts) + notes_html)


def filters_section(ledger: Ledger, networks: Networks, say: Callable[[str], None]) -> Section:
  """The filters of each experiment's first layer, of a network with FP-blocks its pairs too."""
  from bionets_jax.figures.filters import draw_filters

  parts, notes = [], []
  for e in ledger.experiments:
    if (run := with_weights(e)) is None:
      continue
    say(f"{e.name}: filters")
    try:
      figure = draw_filters(networks.load(run))
    except ERRORS as error:
      notes.append(paragraph(f"{e.name}: {error}", "missing"))
      continue
    if figure is None:
      notes.append(paragraph(f"{e.name}: its first layer has no filters that can be drawn.", "missing"))
      continue
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    width, height = Image.open(file).size
    name = e.name + ("" if run.seed is None else f", seed {run.seed}")
    parts.append(f'<figure class="filters">{png(file.getvalue(), f"Filters of {name}", (width, height))}'
                 f"<figcaption>{text(name)}</figcaption></figure>")
  if not parts:
    return absent("filters", "Filters", "no run has its weights here; of a finished one:",
                  "python -m bionets_jax.figures filters --weights=WORKDIR", "".join(notes))
  return Section("filters", "Filters", f'<div class="side-by-side">{"".join(parts)}</div>' + "".join(notes))


def _open(group: Sequence[Confused]) -> Source | str:
  """The images, from the first folder that has them; or why there are none."""
  why = ""
  folders = [c.data["dir"] for c in group]
  if group[0].data["name"] != "folder":  # an evaluation may have been made on another machine
    folders += [str(c.run.config.get("data", {}).get("dir") or "") for c in group]
  for folder in dict.fromkeys([*folders, ""]):
    try:
      source = open_source(group[0].data["name"], group[0].data["split"], folder)
      check_classes(tuple(group[0].found["class_names"]), source, "the evaluation")
      return source
    except ERRORS as error:
      why = why or str(error)
  return why


def _choose(source: Source, group: Sequence[Confused], count: int) -> list[tuple[int, np.ndarray, int]]:
  """(number in the split, uint8 (H, W, 3), label): first those that a network gets wrong."""
  most = min(len(source), *(c.data["examples"] for c in group))  # that all networks have seen
  wrong = sorted({row[0] for c in group for row in c.found["mistakes"] if row[0] < most})
  right = sorted(set(range(most)) - set(wrong))
  bad = min(len(wrong), max(count // 2, count - len(right)))
  return [*_read(source, wrong, bad), *_read(source, right, count - bad)]


def _read(source: Source, indices: Sequence[int], count: int) -> list[tuple[int, np.ndarray, int]]:
  """As many as can be read of `count` examples, taken evenly."""
  out = []
  for i in np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int):
    try:
      encoded, label, key = source.read(indices[i])
      picture = decode(encoded, source.image_shape[-1], key)
    except (ValueError, OSError):
      continue  # a bad record, which the evaluation has left out too
    out.append((indices[i], np.repeat(picture, 3 // picture.shape[-1], axis=-1), int(label)))
  return out


def _column(loaded: Any, pictures: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
  """Of each picture what is shown, and the probabilities (N, K)."""
  maps = of_pictures(loaded, pictures)
  logits = maps.logits.astype(np.float64)
  shares = np.exp(logits - logits.max(-1, keepdims=True))
  shown = [overlay(_large(seen(loaded, picture)), heat)
           for picture, heat in zip(pictures, normalised(maps.values), strict=True)]
  return shown, shares / shares.sum(-1, keepdims=True)


def _large(picture: np.ndarray) -> np.ndarray:
  """Small images with whole pixels enlarged, large ones reduced: what a column of the page shows."""
  height, width = picture.shape[:2]
  if max(height, width) > _LARGEST:
    scale = _LARGEST / max(height, width)
    return np.asarray(Image.fromarray(picture).resize((round(width * scale), round(height * scale))))
  factor = -(-_SIDE // max(height, width))
  return picture.repeat(factor, 0).repeat(factor, 1)


def _gallery(
    where: str, class_names: Sequence[str], pictures: Sequence[tuple[int, np.ndarray, int]],
    columns: Sequence[tuple[Confused, list[np.ndarray], np.ndarray]],
) -> str:
  names = "".join(f'<th scope="col">{text(c.experiment)}</th>' for c, _, _ in columns)
  rows = []
  for i, (number, picture, label) in enumerate(pictures):
    true = class_names[label]
    cells = []
    for c, shown, shares in columns:
      best = int(shares[i].argmax())
      says = f"{class_names[best]} {100 * shares[i, best]:.0f} %"
      verdict = "right" if best == label else "wrong"
      cells.append(f"<td>{image(shown[i], f'{c.experiment}: {says}, {verdict}')}"
                   f'<span class="{verdict}">{text(says)}, {verdict}</span></td>')
    rows.append(f'<tr><th scope="row">{text(true)}<small>example {number}</small></th>'
                f"<td>{image(_large(picture), f'{where}, example {number}: {true}')}</td>{''.join(cells)}</tr>")
  head = f'<th scope="col">true class</th><th scope="col">image</th>{names}'
  return scrolled(where, "gallery", f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")

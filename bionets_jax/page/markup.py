"""Pieces of HTML. Everything that comes from a run goes through `text`, and none of it into a script."""

import base64
import html
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    name: of its anchor, and of its data.
    title: as text.
    body: HTML.
    data: what its script reads, as JSON has it.
    absent: whether there is nothing to see: `body` says which command makes it.
  """

  name: str
  title: str
  body: str
  data: Mapping[str, Any] = {}
  absent: bool = False


def text(value: Any) -> str:
  """As text of an element or value of an attribute; a lone surrogate of a file's name as '\\udcff'."""
  return html.escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)


def paragraph(value: str, kind: str = "") -> str:
  return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def absent(name: str, title: str, what: str, command: str, notes: str = "") -> Section:
  """What stands where a section would be."""
  return Section(name, title, f"<p>{text(title)}: {text(what)} <code>{text(command)}</code></p>{notes}", absent=True)


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()
) -> str:
  """A table whose first cell of each row is its heading; the page's script lets readers sort it.

  Args:
    caption, header, rows: as text.
    left: the names of columns that are flush left; the others hold numbers.
  """
  kinds = ["" if name in left else ' class="number"' for name in header]
  head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(header, kinds, strict=True))
  body = []
  for row in rows:
    first, *others = (text(cell) for cell in row)
    cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
    body.append(f'<tr><th scope="row"{kinds[0]}>{first}</th>{cells}</tr>')
  sort = "sortable" if len(rows) > 1 else ""
  return scrolled(caption, sort, f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>")


def scrolled(caption: str, kind: str, content: str) -> str:
  """A table in a box of its own that scrolls where it is too wide.

  Args:
    caption: as text.
    kind: its class.
    content: head and body as HTML.
  """
  # A box that scrolls is reached by the keyboard only if it can have the focus.
  return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table class="{kind}">'
          f"<caption>{text(caption)}</caption>{content}</table></div>")


def bars(caption: str, header: tuple[str, str, str], rows: Sequence[tuple[str, float | None, str]]) -> str:
  """A table with a bar beside each number; the longest bar is the largest number.

  Args:
    caption, header: as text.
    rows: (name, number or None, what else is told of it).
  """
  longest = max((value for _, value, _ in rows if value is not None), default=0) or 1
  body = []
  for name, value, more in rows:
    width = 0 if value is None else 100 * value / longest
    shown = "-" if value is None else f"{value:.2f}"
    body.append(
        f'<tr><th scope="row">{text(name)}</th><td class="number">{shown}</td><td class="bar"><svg '
        f'viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width="{width:.2f}" height="10"/>'
        f"</svg></td><td>{text(more)}</td></tr>")
  head = (f'<th scope="col">{text(header[0])}</th><th scope="col" class="number">{text(header[1])}</th><td></td>'
          f'<th scope="col">{text(header[2])}</th>')
  return scrolled(caption, "sortable bars", f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>")


def folded(summary: str, body: str, unfolded: bool = False) -> str:
  return f"<details{' open' * unfolded}><summary>{text(summary)}</summary>{body}</details>"


def image(pixels: np.ndarray, alternative: str, side: int = 0) -> str:
  """uint8 (H, W, 3) as a PNG inside the page; `side` enlarges small ones by whole pixels to at least that."""
  from PIL import Image

  picture = Image.fromarray(pixels)
  if max(picture.size) < side:
    factor = math.ceil(side / max(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
  file = io.BytesIO()
  picture.save(file, "PNG", optimize=True)
  return png(file.getvalue(), alternative, picture.size)


def png(content: bytes, alternative: str, size: tuple[int, int]) -> str:
  """(width, height) is kept free for it before it is decoded."""
  return (f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{text(alternative)}" '
          f'width="{size[0]}" height="{size[1]}">')


def embedded(data: Any) -> str:
  """JSON that may stand inside a script element: no NaN, and no '<' that would end it."""
  return json.dumps(_finite(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(data: Any) -> Any:
  """With null for numbers that JSON does not have, and six digits of the others: a curve needs no more."""
  if isinstance(data, Mapping):
    return {str(key): _finite(value) for key, value in data.items()}
  if isinstance(data, list | tuple):
    return [_finite(value) for value in data]
  if isinstance(data, float):
    return float(f"{data:.6g}") if math.isfinite(data) else None
  return data

"""Which classes are taken for which, and how many of each are."""

from collections.abc import Sequence

from bionets_jax.evaluate.confusion import most_confused
from bionets_jax.page.markup import Section, absent, bars, folded, paragraph, table
from bionets_jax.page.networks import Confused

_PAIRS = 15
_SHOWN = 200  # classes whose errors are listed
_DRAWN = 100  # classes of which the whole matrix is drawn


def confusion_section(found: Sequence[Confused], problems: Sequence[tuple[str, str]]) -> Section:
  """A matrix for each network, drawn by the page's script, and beside it the most confused pairs as a table.

  Args:
    found, problems: of `networks.confusions`.
  """
  title = "Confusion"
  reasons: dict[str, list[str]] = {}
  for name, why in problems:
    reasons.setdefault(why, []).append(name)
  notes = "".join(paragraph(f"{', '.join(names)}: {why}.", "missing") for why, names in reasons.items())
  if not found:
    return absent("confusion", title, "of no run; this stores it:", "python -m bionets_jax.evaluate WORKDIR --confusion",
                  notes)
  reading = ("Rows are the true classes, columns the predicted ones; a field says how many per cent of its row it is. "
             "Fields that are 0 are empty.")
  if any(len(c.found["class_names"]) > _DRAWN for c in found):
    reading += f" Of more than {_DRAWN} classes the pairs that are confused most often are shown."
  body = [paragraph(reading, "reading"), '<div id="confusion-here"></div>']
  matrices = []
  for c in found:
    names = c.found["class_names"]
    if len(names) <= _DRAWN:
      matrices.append({"name": c.where, "classes": names, "counts": c.found["counts"]})
    pairs = most_confused(c.found["counts"], _PAIRS)
    totals = [row["examples"] for row in c.found["per_class"]]
    rows = [[names[true], names[other], f"{count:,}", f"{100 * count / totals[true]:.1f}" if totals[true] else "-"]
            for true, other, count in pairs]
    caption = f"Most confused classes, {c.experiment}"
    if lost := c.found.get("without_prediction"):
      body.append(paragraph(f"{c.where}: the logits of {lost} of them are not numbers; these are errors of their "
                            "classes, and in no column.", "missing"))
    header = ["true", "predicted", "images", "% of the true class"]
    content = (table(caption, header, rows, {"true", "predicted"}) if rows else
               paragraph("No image is taken for another class."))
    body.append(folded(f"Most confused classes. {c.where}", content, unfolded=c is found[0]))
  return Section("confusion", title, "".join(body) + notes, {"matrices": matrices})


def classes_section(found: Sequence[Confused]) -> Section | None:
  """The error of each class, the highest first; None where no network is known well enough."""
  body = []
  for c in found:
    rows = sorted(zip(c.found["class_names"], c.found["per_class"], strict=True), key=lambda row: -(row[1]["error"] or 0))
    most = f", the {_SHOWN} highest of {len(rows)}" if len(rows) > _SHOWN else ""
    content = bars(f"Top-1 error of each class, {c.experiment}{most}", ("class", "error %", "images"), [
        (name, row["error"], f"{row['errors']:,} of {row['examples']:,}") for name, row in rows[:_SHOWN]])
    body.append(folded(c.where, content, unfolded=c is found[0]))
  return Section("classes", "Error of each class", "".join(body)) if found else None

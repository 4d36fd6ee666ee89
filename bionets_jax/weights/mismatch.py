"""What to say of a file that does not fit a model."""

import dataclasses

from bionets_jax.weights import layouts
from bionets_jax.weights.guess import guess_network

_SHOWN = 12  # lines of each kind
_HEAD = ("params", "head", "kernel")


@dataclasses.dataclass
class Mismatch:
  """What differs between a file and a model.

  Attributes:
    missing: our path -> its Slot, or None where the layout has no place for it; the file lacks these.
    left_over: keys of the file that the model has no use for.
    misshapen: our path -> (shape in the model, shape in the file).
  """

  missing: dict = dataclasses.field(default_factory=dict)
  left_over: list = dataclasses.field(default_factory=list)
  misshapen: dict = dataclasses.field(default_factory=dict)

  def __bool__(self):
    return bool(self.missing or self.left_over or self.misshapen)

  def describe(self, path, layout, tensors, leaves, model, model_name):
    """The message: first the number of classes, if nothing else differs; else what the file looks like.

    Args:
      path: of the file.
      layout: that it has.
      tensors: its tensors.
      leaves: {our path: array or shape} of the model.
      model: the module, or None.
      model_name: its name, or ''.
    """
    name = model_name or "the model"
    classes, only = self._classes(layout, tensors, leaves)
    if only:
      lines = [f"{path} ({layout.name} layout): {classes}"]
    else:
      lines = [f"{path} ({layout.name} layout) does not fit {name}:"]
      lines += [f"  {line}" for line in (_look(tensors, model, model_name), classes) if line]
    for title, items in (
        ("missing in the file", [
            f"{'/'.join(key)} ({slot.key if slot else 'no place in this layout'})"
            for key, slot in self.missing.items()]),
        ("left over in the file", self.left_over),
        ("misshapen", [f"{'/'.join(key)}: the model has {ours}, the file {theirs}"
                       for key, (ours, theirs) in self.misshapen.items()]),
    ):  # fmt: skip
      if items:
        lines.append(f"  {title} ({len(items)}):")
        lines += [f"    {item}" for item in items[:_SHOWN]]
        if len(items) > _SHOWN:
          lines.append(f"    ... and {len(items) - _SHOWN} more")
    return "\n".join(lines)

  def _classes(self, layout, tensors, leaves):
    """(how the numbers of classes differ, whether nothing else does); ('', False) if they agree."""
    slot = layouts.slot(layout, _HEAD)
    present = slot is not None and slot.key in tensors
    theirs = slot.from_foreign(tensors[slot.key]).shape if present else ()
    ours = tuple(leaves[_HEAD].shape) if _HEAD in leaves else ()
    if ours[-1:] == theirs[-1:] or (present and len(theirs) != 2):
      return "", False
    owner = slot.key.rpartition(layout.separator)[0] + layout.separator if slot else ""
    only = all(key[1] == "head" for key in (*self.missing, *self.misshapen)) and all(
        owner and key.startswith(owner) for key in self.left_over)
    only = only and (not ours or not theirs or ours[:-1] == theirs[:-1])
    if not theirs:
      text = f"the file has no head, the model one for {ours[-1]} classes; create the model with num_classes=0"
    elif not ours:
      text = (f"the file has a head for {theirs[-1]} classes, the model none; create the model with "
              f"num_classes={theirs[-1]}. Its endpoint 'pre_logits' is what the head sees")
    else:
      text = (f"the file has {theirs[-1]} classes, the model {ours[-1]}; create the model with "
              f"num_classes={theirs[-1]}")
    return text, only


def _look(tensors, model, model_name):
  """'this file looks like ...', if that is not what the model is."""
  guess = guess_network(tensors)
  if not guess:
    return ""
  name, options = guess
  own = {key: getattr(model, key, None) for key in options}
  own = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}  # from JSON
  if name == model_name and own == options:
    return ""
  text = ", ".join(f"{key}={value!r}" for key, value in options.items())
  return f"this file looks like {name}" + (f" with {text}" if text else "")

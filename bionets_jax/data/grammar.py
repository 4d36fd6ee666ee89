"""The little language of `train_transform`, `eval_transform` and `test_transform`.

  'random_resized_crop(224)|flip'     applied from left to right
  'resize(256, bicubic)|center_crop(224)'
  ''                                  nothing

Arguments are numbers or bare words. What a name means is up to the table: `HOST_TRANSFORMS`
(transforms.py) or `DEVICE_TRANSFORMS` (device_transforms.py); `placement.py` says which of the
two does what.
"""

import math
import re

from bionets_jax.data import naming

MAX_SIDE = 2**14  # pixels; a slip beyond it would ask for more memory than there is

_CALL = re.compile(r"\s*([a-z_]\w*)\s*(?:\(([^()]*)\))?\s*")
_WORD = re.compile(r"[a-z_]\w*")


def split_calls(text):
  """Returns the calls in `text`, e.g. ['resize(256)', 'flip'], without checking them."""
  return text.split("|") if text.strip() else []


def parse_call(call, table):
  """Makes the one transform that `call` describes; see `parse_transforms`."""
  match = _CALL.fullmatch(call)
  if not match:
    raise ValueError(
        f"Cannot read the transform {call!r}; write 'name(arg, arg)|name|...', e.g."
        " 'random_resized_crop(224)|flip'."
    )
  name, inside = match.groups()
  if name not in table:
    raise ValueError(naming.unknown("transform", name, table))
  kind = table[name]
  arguments = ()
  if inside and inside.strip():
    arguments = tuple(_argument(part.strip(), call.strip()) for part in inside.split(","))
  try:
    return kind(*arguments)
  except (TypeError, ValueError) as error:
    detail = "" if isinstance(error, TypeError) else f" {error}"
    raise ValueError(f"{call.strip()!r} does not fit {kind.usage}.{detail}") from error


def parse_transforms(text, table):
  """Turns 'a(1)|b' into the transforms [table['a'](1), table['b']()].

  Args:
    text: the transforms, separated by '|'; '' for none.
    table: dict of name -> class. A class has `usage`, e.g. 'center_crop(size)', and raises
      ValueError for arguments out of range.

  Returns:
    A tuple of what the classes made.

  Raises:
    ValueError: bad syntax, unknown name (lists the nearest), wrong arguments (says the usage).
  """
  return tuple(parse_call(call, table) for call in split_calls(text))


def check_pixels(name, value):
  """Raises ValueError unless `value` is an int from 1 to MAX_SIDE."""
  if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
    raise ValueError(f"{name} must be a whole number of pixels from 1 to {MAX_SIDE}, got {value!r:.40}.")


def check_number(name, value, low, high):
  """Raises ValueError unless `value` is a number in [low, high]."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
    raise ValueError(f"{name} must be a number from {low} to {high}, got {value!r}.")


def _argument(text, call):
  for kind in (int, float):
    try:
      number = kind(text)
    except ValueError:
      continue
    if kind is int or math.isfinite(number):
      return number
  if _WORD.fullmatch(text):
    return text
  raise ValueError(
      f"In {call!r}: {text!r} is not an argument; arguments are numbers or bare words."
  )

"""Where the images of a split are prepared: on the host, on the device, or first here, then there.

A set lives on the device if it is small once every image has one size. What comes before that is
done once, while it is loaded, and must not be random; what comes after is done on the device, in
every epoch anew. Whatever does not fit this is streamed from the host.
"""

import dataclasses
import math

import numpy as np

from bionets_jax.data.device_transforms import DEVICE_TRANSFORMS
from bionets_jax.data.grammar import parse_call, split_calls
from bionets_jax.data.objects import ObjectsSource
from bionets_jax.data.stream import BatchReader
from bionets_jax.data.transforms import HOST_TRANSFORMS, TenCrop, output_size

# More than this many bytes (of all splits together) are streamed instead.
MAX_RESIDENT_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Placement:
  """How the images of one split are prepared.

  Attributes:
    resident: whether they live on the device.
    host: transforms of HOST_TRANSFORMS that come first, in order.
    device: transforms of DEVICE_TRANSFORMS that come next; none if streamed.
    host_shape: shape of an image between the two: what lives on the device.
    image_shape: shape of an image at the end, (h, w, c), or (10, h, w, c) for ten crops.
  """

  resident: bool
  host: tuple
  device: tuple
  host_shape: tuple
  image_shape: tuple

  @property
  def transforms(self):
    """All transforms, in order."""
    return self.host + self.device

  def reader(self, source, plan, seed, shards, num_shards, limit):
    """Returns the `BatchReader` of a streamed split; the arguments are its own."""
    return BatchReader(source, plan, self.host, self.host_shape, seed, shards, num_shards, limit)

  def abstract_batches(self, plan):
    """Returns [{field: (shape, dtype)}], of each size of batch of a `BatchPlan`, the full one first."""
    return [{"image": ((size, *self.image_shape), np.dtype(np.uint8)), "label": ((size,), np.dtype(np.int32))}
            for size in plan.batch_sizes]

  def describe(self, plan):
    """Returns the height, width and channels of the images in words."""
    del plan
    return " x ".join(map(str, self.image_shape))


@dataclasses.dataclass(frozen=True)
class _Call:
  """One transform of a text: what it is on the host and on the device, None where it is not."""

  text: str
  on_host: object
  on_device: object


def place(requests):
  """Decides where the images of every split are prepared.

  The first split, which is the one trained on, decides for all: if it is streamed, all are. A later
  one may be streamed though the first is not.

  Args:
    requests: for each split (field, text, source): the config field that holds the transforms, for
      messages; the transforms; the `Source`.

  Returns:
    A list of `Placement`, one for each split.

  Raises:
    ValueError: transforms that do not exist or do not go together, or images that would differ in
      size, or a set for detection; names the field.
  """
  for field, _, source in requests:
    if isinstance(source, ObjectsSource):
      raise ValueError(f"{field}: {source.name} is a set for detection, and a set of images with one label is needed.")
  parsed = [_parse(field, text) for field, text, _ in requests]
  residents = [
      _resident(calls, source) for calls, (_, _, source) in zip(parsed, requests, strict=True)
  ]
  total = sum(
      len(source) * math.prod(resident.host_shape)
      for resident, (_, _, source) in zip(residents, requests, strict=True) if resident
  )
  small = residents[0] is not None and total <= MAX_RESIDENT_BYTES
  return [
      resident if resident and small
      else _streamed(field, calls, source, total if resident else 0)
      for resident, calls, (field, _, source) in zip(residents, parsed, requests, strict=True)
  ]


def _parse(field, text):
  """Returns the calls of a field; each is possible on the host, on the device or on both."""
  try:
    calls = [_parse_call(call) for call in split_calls(text)]
  except ValueError as error:
    raise ValueError(f"{field}: {error}") from error
  for call in calls[:-1]:
    if isinstance(call.on_host, TenCrop):
      raise ValueError(f"{field}={text!r}: {call.text} makes ten images of one and must come last.")
  return calls


def _parse_call(call):
  tables = HOST_TRANSFORMS, DEVICE_TRANSFORMS
  name = call.split("(")[0].strip()
  if not any(name in table for table in tables):
    parse_call(call, HOST_TRANSFORMS | DEVICE_TRANSFORMS)  # raises
  made, errors = [], []
  for table in tables:
    try:
      made.append(parse_call(call, table) if name in table else None)
    except ValueError as error:  # e.g. an argument that only the other knows
      made.append(None)
      errors.append(error)
  if made == [None, None]:
    raise errors[0]
  return _Call(call.strip(), *made)


def _resident(calls, source):
  """Returns the placement on the device with the fewest bytes there, None if there is none."""
  *size, channels = source.image_shape
  options = []
  for first in range(len(calls) + 1):
    host, device = calls[:first], calls[first:]
    before = [call.on_host for call in host]
    after = [call.on_device for call in device]
    if any(t is None or t.is_random or isinstance(t, TenCrop) for t in before) or None in after:
      continue
    fixed = output_size(before, tuple(size))
    if None in fixed:
      continue
    options.append(Placement(
        True, tuple(before), tuple(after), (*fixed, channels),
        (*output_size(after, fixed), channels),
    ))
  return min(options, key=lambda option: math.prod(option.host_shape), default=None)


def _streamed(field, calls, source, total):
  """Returns the placement on the host; `total` says that the device is too small for them all."""
  transforms = tuple(call.on_host for call in calls)
  *size, channels = source.image_shape
  if None in transforms:
    raise ValueError(_explain(field, calls, source, total))
  try:
    height, width = output_size(transforms, tuple(size))
  except ValueError as error:
    raise ValueError(f"{field}: {error}") from error
  if height is None or width is None:
    raise ValueError(
        f"The images of {source.name} differ in size and {field} does not end in one fixed"
        " size; add center_crop(224), random_resized_crop(224) or pad_square|resize_to(224)."
    )
  crops = (TenCrop.crops,) if transforms and isinstance(transforms[-1], TenCrop) else ()
  shape = (*crops, height, width, channels)
  return Placement(False, transforms, (), shape, shape)


def _explain(field, calls, source, total):
  """Says why transforms of the device meet a split that is streamed."""
  only_device = [call.text for call in calls if call.on_host is None]
  only_host = [call.text for call in calls if call.on_device is None]
  if total > MAX_RESIDENT_BYTES:
    why = (f"since all splits together are {total / 2**30:.1f} GiB, more than"
           f" {MAX_RESIDENT_BYTES / 2**30:g}")
  elif total:
    why = "since its training split is"
  elif only_host:
    why = (f"for {', '.join(only_host)} works there alone, or would have to come first and not be"
           " random")
  else:
    why = ("for its images differ in size (to live on the device, begin with what gives them one,"
           " e.g. pad_square|resize_to(224, nearest))")
  return (f"{field}: {', '.join(only_device)} works on a set that lives on the device, and"
          f" {source.name} is streamed from the host, {why}. There it can be:"
          f" {', '.join(sorted(HOST_TRANSFORMS))}.")

"""What the command line of the heatmaps does: pictures and networks to a figure."""

import argparse
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bionets_jax.data.decode import decode
from bionets_jax.data.naming import nearest
from bionets_jax.data.objects import ObjectsSource
from bionets_jax.data.sources import Source, open_source
from bionets_jax.detection.finding import read_upright
from bionets_jax.heatmaps.gallery import MOST, Column, Picture, draw, says
from bionets_jax.heatmaps.maps import layers
from bionets_jax.heatmaps.pictures import check, of_pictures, seen
from bionets_jax.report.curves import save
from bionets_jax.weights.detectors import is_detector
from bionets_jax.weights.loading import Loaded, load_located, load_read, weight_file
from bionets_jax.weights.locate import locate
from bionets_jax.weights.native import LAYOUT, is_native, load_native

Say = Callable[[str], None]
Reader = Callable[[], tuple[np.ndarray, int | None]]  # gives a picture and its label


class Read(NamedTuple):
  """Pictures that could be read: uint8 (H, W, 3) each, what they are, and how many could not."""

  images: list[np.ndarray]
  pictures: list[Picture]
  left_out: int


def draw_heatmaps(options: argparse.Namespace, say: Say = print) -> int:
  """Does what the options of `command_line.parse` say; returns how many pictures were left out.

  Raises:
    ValueError, OSError: saying what is wrong with which weights, data or option.
  """
  networks = [_load(source, options, say) for source in options.weights]
  if (options.model or options.model_options) and all(loaded.layout == LAYOUT for loaded in networks):
    raise ValueError("--model and --model-option are of another library's file; these were written by runs and say "
                     "themselves what their networks are")
  if options.list_layers:
    for loaded in networks:
      say(f"{loaded.name}, {loaded.path}")
      for name, (h, w, channels) in layers(loaded.model, loaded.variables, loaded.image_shape).items():
        say(f"  {name}  {h} x {w}, {channels} channels")
    return 0
  source = _open(options) if options.data else None
  class_names = _class_names(networks, source)
  if source and len(options.examples) > MOST:
    raise ValueError(f"{len(options.examples)} pictures: a figure has room for {MOST}")
  if len(options.images) > MOST:  # as a shell makes them of *.jpg
    say(f"the first {MOST} of {len(options.images)} pictures: a figure has room for no more")
  read = _read(_of_set(source, options.examples) if source else _of_files(options.images[:MOST]), say)
  if not read.images:
    raise ValueError("no picture could be read; nothing was drawn")
  classes = _wanted(options.of, [picture.label for picture in read.pictures], class_names)
  columns = []
  for names, loaded in zip(_headings(networks), networks, strict=True):
    try:
      maps = of_pictures(loaded, read.images, options.method, options.layer, classes)
    except ValueError as error:
      raise ValueError(f"{loaded.path}: {error}") from error
    columns.append(Column([*names, maps.layer], maps, [seen(loaded, image) for image in read.images]))
    for i, picture in enumerate(read.pictures):
      say(f"{picture.name}: {' '.join(names)}: {', '.join(says(maps, i, picture.label, class_names))}")
  of = "the predicted class"
  if classes is not None:
    of = "the true class" if options.of == "true" else class_names[classes[0]]
  save(draw(read.pictures, columns, class_names, method=options.method, of=of), options.out)
  counted = ((len(read.images), "picture"), (len(networks), "network"))
  say(", ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counted) + f": {options.out}"
      + (f"; {read.left_out} left out" if read.left_out else ""))
  return read.left_out


def _load(source: str, options: argparse.Namespace, say: Say) -> Loaded:
  located = locate(source, say)
  path = weight_file(located)
  if not is_native(path):
    loaded = load_located(located, options.model, **options.model_options)
  else:
    variables, about = load_native(path)
    if is_detector(about):
      raise ValueError(f"{path} holds a detector ({about['model']}): heatmaps are of networks that give an image one "
                       "score a class, and a detector gives many boxes theirs. python -m bionets_jax.detection.predict "
                       "draws what it finds")
    loaded = load_read(located, path, variables, about, "", None, None, {})
  check(loaded)
  return loaded


def _open(options: argparse.Namespace) -> Source:
  source = open_source(options.data, options.split, options.data_dir)
  if isinstance(source, ObjectsSource):
    raise ValueError(f"--data={options.data} is a set for detection, and one of images with one label is needed")
  if (most := max(options.examples)) >= len(source):
    raise ValueError(f"--examples: there is no example {most}; {source.name} {source.split} has {len(source):,}, from 0 "
                     "on")
  return source


def _class_names(networks: Sequence[Loaded], source: Source | None) -> tuple[str, ...]:
  """What the classes are called, by whoever says it. ValueError where two of them have different classes."""
  known = [(loaded.path, loaded.num_classes, loaded.class_names) for loaded in networks]
  if source:
    known.append((f"--data={source.name}", source.num_classes, source.class_names))
  first, number, names = next((one for one in known if one[2]), known[0])
  for who, others, theirs in known:
    if others != number:
      raise ValueError(f"{first} has {number} classes, {who} {others}: side by side go networks and data of the same")
    if theirs and tuple(theirs) != tuple(names):
      i = next(i for i, (a, b) in enumerate(zip(names, theirs, strict=True)) if a != b)
      raise ValueError(f"class {i} is {names[i]!r} in {first} and {theirs[i]!r} in {who}: side by side go networks and "
                       "data of the same classes, in the same order")
  return tuple(names) or tuple(f"class {i}" for i in range(number))


def _of_files(paths: Sequence[str]) -> Iterator[tuple[str, Reader]]:
  def read(path):
    return read_upright(path), None

  for path in paths:
    yield path, functools.partial(read, path)


def _of_set(source: Source, examples: Sequence[int]) -> Iterator[tuple[str, Reader]]:
  def read(i):
    image, label, key = source.read(i)
    image = decode(image, source.image_shape[-1], key)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image, label

  for i in examples:
    yield f"{source.split} {i}", functools.partial(read, i)


def _read(pictures: Iterator[tuple[str, Reader]], say: Say) -> Read:
  found = Read([], [], 0)
  for name, read in pictures:
    try:
      image, label = read()
    except (OSError, ValueError) as error:
      say(f"{name}: left out: {(error.strerror if isinstance(error, OSError) else None) or error}")
      found = found._replace(left_out=found.left_out + 1)
    else:
      found.images.append(image)
      found.pictures.append(Picture(os.path.basename(name), label))
  return found


def _wanted(of: str, labels: Sequence[int | None], class_names: Sequence[str]) -> list[int] | None:
  """The class of each picture's map; None for the predicted ones."""
  if of == "predicted":
    return None
  if of == "true":
    return [label for label in labels if label is not None]  # an example of a set has one
  if of in class_names:
    return [class_names.index(of)] * len(labels)
  if of.isdecimal() and int(of) < len(class_names):
    return [int(of)] * len(labels)
  raise ValueError(f"--of={of}: give predicted, true, the name of a class or its number from 0 to "
                   f"{len(class_names) - 1}.{nearest(of, class_names)}")


def _headings(networks: Sequence[Loaded]) -> list[list[str]]:
  """Each network's name, and where it is from if several have the same."""
  names = [loaded.name for loaded in networks]
  return [[loaded.name] if names.count(loaded.name) == 1 else
          [loaded.name, os.path.basename(loaded.source.rstrip("/"))] for loaded in networks]

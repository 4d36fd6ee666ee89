"""Keras' files of a small EfficientNet-B0, as fixtures/make_keras_weights_fixtures.py had Keras write them."""

import functools
import lzma
import pathlib

import pytest

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
FILES = sorted(path.name.removesuffix(".xz") for path in (FIXTURES / "keras_files").iterdir())


def unpacker(folder):
  """name -> path of the file in `folder`, unpacked when it is asked for first."""
  @functools.cache
  def unpack(name):
    (folder / name).write_bytes(lzma.decompress((FIXTURES / "keras_files" / f"{name}.xz").read_bytes()))
    return folder / name

  return unpack


def error_of(read, *args, **options):
  with pytest.raises(ValueError) as error:
    read(*args, **options)
  return str(error.value)

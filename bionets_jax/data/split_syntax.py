"""Splits in TFDS's syntax, of sets that TFDS does not know: 'train[:90%]+test', '2007/train+2012/train[:100]'."""

from bionets_jax.data import naming


def years_of(name, split, known):
  """Returns what the splits of a set of several years are made of.

  Args:
    name: of the set, for messages.
    split: e.g. '2007/train+2012/train[:90%]'.
    known: year -> names of its splits.

  Returns:
    A list of (year, split in TFDS's syntax).

  Raises:
    ValueError: a part without a year that there is.
  """
  parts = []
  for part in split.split("+"):
    year, slash, of_year = part.strip().partition("/")
    if not slash or year not in known:
      listed = [f"{y}/{s}" for y, splits in known.items() for s in splits]
      raise ValueError(naming.unknown_split(name, part, listed))
    parts.append((year, of_year))
  return parts


def part_of(brackets, count):
  """Returns the slice of `count` examples that '[:90%]' stands for; ValueError for what is none."""
  import tensorflow_datasets as tfds

  known = tfds.core.SplitDict([tfds.core.SplitInfo(name="split", shard_lengths=[count], num_bytes=0)])
  try:
    if "shard" in brackets:
      raise ValueError("there are no files of several examples")
    (part,) = tfds.core.ReadInstruction.from_spec(f"split{brackets}").to_absolute(known)
  except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
    raise ValueError(
        f"{brackets} is no part of {count} examples; write '[:90%]', '[90%:]' or '[10:20]'") from error
  return slice(part.from_, part.to)


def examples_of(splits, split, name):
  """Returns the (split, position) pairs that 'train[:90%]+test' stands for, in its order."""
  import tensorflow_datasets as tfds

  known = tfds.core.SplitDict([
      tfds.core.SplitInfo(name=key, shard_lengths=[count], num_bytes=0)
      for key, count in splits.items()
  ])
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
  except (ValueError, KeyError, AssertionError) as error:
    raise ValueError(naming.unknown_split(name, split, splits)) from error
  examples = [
      (part.splitname, i) for part in parts
      for i in range(splits[part.splitname])[part.from_:part.to]
  ]
  if not examples:
    raise ValueError(f"The split {split!r} of {name} is empty.")
  return examples

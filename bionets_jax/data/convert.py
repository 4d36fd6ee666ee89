"""Makes sets that TFDS stored as TFRecord readable here, without TensorFlow.

The ArrayRecord files are written beside the TFRecord files, and as the last step dataset_info.json
is replaced by one that names both formats. Until then the directory is as it was; an interrupted
conversion goes on after the last whole file. `python -m bionets_jax.data.prepare --convert DIR` is
the command.
"""

import json
import os
import pathlib
import shutil
import time

from bionets_jax.data.tfrecord import read_records


class PrepareError(Exception):
  """What the user has to be told; printed without a traceback."""


def convert(directory, out=""):
  """Gives a set that TFDS stored as TFRecord an ArrayRecord twin.

  Args:
    directory: DATA_DIR/NAME/VERSION, with dataset_info.json.
    out: another directory for the result, which gets only the ArrayRecord files and the
      metadata; '' writes into `directory`.

  Returns:
    The directory of the result.

  Raises:
    PrepareError: not a TFDS directory, not TFRecord, or files missing.
    ValueError: a file is truncated or corrupt, or holds another number of examples than
      dataset_info.json says.
  """
  import tensorflow_datasets as tfds

  source = pathlib.Path(directory).expanduser()
  target = pathlib.Path(out).expanduser() if out else source
  info_path = source / "dataset_info.json"
  if not info_path.exists():
    raise PrepareError(
        f"{source} has no dataset_info.json; expected the directory of one version, such as"
        " DATA_DIR/imagenet2012/5.1.0."
    )
  if not (source / "features.json").exists():
    raise PrepareError(f"{source} has no features.json: it was built by TFDS before 4.0.")
  stored = json.loads(info_path.read_text())
  file_format = stored.get("fileFormat") or "tfrecord"  # old sets do not say
  formats = [file_format, *stored.get("alternativeFileFormats", ())]
  if "array_record" in formats:
    raise PrepareError(f"{source} has ArrayRecord files already; there is nothing to convert.")
  if "tfrecord" not in formats:
    raise PrepareError(f"{source} is stored as {file_format}; only TFRecord can be converted.")

  shards = []
  for split in tfds.builder_from_directory(source, file_format=file_format).info.splits.values():
    template = split.filename_template
    old = template.replace(filetype_suffix="tfrecord", data_dir=source)
    new = template.replace(filetype_suffix="array_record", data_dir=target)
    n = len(split.shard_lengths)
    shards.extend(zip(
        map(pathlib.Path, old.sharded_filepaths(n)),
        map(pathlib.Path, new.sharded_filepaths(n)),
        split.shard_lengths,
        strict=True,
    ))
  for root, path in [(source, old) for old, _, _ in shards] + [(target, new) for _, new, _ in shards]:
    if not pathlib.Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
      raise PrepareError(f"{source}/dataset_info.json names a file outside of {root}: {path}")
  if any(old == new for old, new, _ in shards):
    raise PrepareError(f"{source}: the file names do not tell the format; use --out.")
  missing = [old.name for old, _, _ in shards if not old.exists()]
  if missing:
    raise PrepareError(f"{source}: {len(missing)} of {len(shards)} files are missing, e.g."
                       f" {missing[0]}.")
  progress = _Progress(sum(length for _, _, length in shards), len(shards))
  for old, new, length in shards:
    new.parent.mkdir(parents=True, exist_ok=True)
    if not (new.exists() and _count(new) == length):
      _convert_file(old, new, length, progress)
    progress.file_done(length)

  if target != source:
    for path in source.iterdir():
      if path.suffix in (".json", ".txt") and path.name != "dataset_info.json":
        shutil.copyfile(path, target / path.name)
  stored["fileFormat"] = "array_record"
  kept = [f for f in formats if f != "array_record"] if target == source else []
  stored.pop("alternativeFileFormats", None)
  if kept:
    stored["alternativeFileFormats"] = kept
  temporary = target / f".dataset_info.json.{os.getpid()}"
  temporary.write_text(json.dumps(stored, indent=2))
  os.replace(temporary, target / "dataset_info.json")
  return os.fspath(target)


def _convert_file(old, new, length, progress):
  """Writes `new` with the records of `old`, whole or not at all."""
  from array_record.python import array_record_module

  temporary = new.with_name(f".{new.name}.{os.getpid()}")
  try:
    # One record a group, as TFDS writes it: random access then reads nothing else.
    writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), "group_size:1")
    count = 0
    try:
      for record in read_records(old):
        writer.write(record)
        count += 1
        progress.show(count)
    finally:
      writer.close()
    if count != length:
      raise ValueError(f"{old} holds {count} examples, dataset_info.json says {length}.")
    if _count(temporary) != length:
      raise ValueError(f"{temporary} came out with {_count(temporary)} records of {length}.")
    os.replace(temporary, new)
  finally:
    temporary.unlink(missing_ok=True)


def _count(path):
  """Returns the number of records of an ArrayRecord file."""
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(os.fspath(path))
  try:
    return reader.num_records()
  finally:
    reader.close()


class _Progress:
  """A line every ten seconds, and one for every whole file."""

  def __init__(self, examples, files):
    self._examples, self._files = examples, files
    self._done = self._files_done = 0
    self._started = self._shown = time.monotonic()

  def show(self, in_file, force=False):
    now = time.monotonic()
    if not force and now - self._shown < 10:
      return
    self._shown = now
    done = self._done + in_file
    rate = max(done, 1) / max(now - self._started, 1e-6)
    print(
        f"{self._files_done}/{self._files} files, {done:,}/{self._examples:,} examples,"
        f" {rate:,.0f}/s, {(self._examples - done) / rate / 60:.1f} min left",
        flush=True,
    )

  def file_done(self, length):
    self._done += length
    self._files_done += 1
    self.show(0, force=self._files_done == self._files)

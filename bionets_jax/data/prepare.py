"""Prepares data sets for training, on the command line.

  python -m bionets_jax.data.prepare --list
  python -m bionets_jax.data.prepare cifar10 --data-dir=DIR
  python -m bionets_jax.data.prepare imagenet2012 --data-dir=DIR --manual-dir=ARCHIVES
  python -m bionets_jax.data.prepare --convert DIR/imagenet2012/5.1.0

The first says what the sets of the papers are, where their files come from and which command
prepares each. The second and third build a set in ArrayRecord form, downloading what can be
downloaded. Any other set of TFDS is prepared in the same way. The builders that come with TFDS need
TensorFlow for that, those of this package (CIFAR, the pets, PlantDoc, VOC) do not; training never does.

The last makes a set that TFDS built earlier as TFRecord readable here, without TensorFlow
(convert.py).
"""

import argparse
import importlib
import importlib.util
import os
import pathlib
import sys

from bionets_jax.data import catalog, naming
from bionets_jax.data.convert import PrepareError, convert

_NEEDS_TENSORFLOW = (
    "{name} is built by TFDS with TensorFlow, which is not installed. It is needed for this step"
    " only:\n  pip install 'tensorflow-cpu>=2.20' tensorboard\nA set that was built elsewhere as"
    " TFRecord can be converted without it: --convert DIR/{name}/VERSION."
)


def prepare(name, data_dir="", manual_dir=""):
  """Downloads and builds a set in ArrayRecord form.

  Args:
    name: 'name', 'name/config' or either with ':1.2.3'.
    data_dir: where to; '' means $TFDS_DATA_DIR or ~/tensorflow_datasets.
    manual_dir: where the files are that are not downloaded here; `catalog` has which. '' means
      TFDS's, DATA_DIR/downloads/manual.

  Returns:
    directory: of the prepared set.
    report: list of lines about what was left out or differs from what is published.

  Raises:
    PrepareError: unknown name or version, files missing in manual_dir, a download that fails or is not what it
      should be, or TensorFlow is missing.
    ValueError: the files are not what they should be; says where.
    OSError: no connection, or a folder that cannot be written.
  """
  if name in ("digits", "folder") or name.startswith("generated/"):
    raise PrepareError(f"{name!r} needs no preparation.")
  if name == "voc":
    raise PrepareError("'voc' is prepared year by year: voc/2007 and voc/2012.")
  from bionets_jax.data.tfds_records import default_data_dir

  data_dir = os.path.expanduser(data_dir or default_data_dir())
  builder = _builder(name, data_dir)
  manual_dir = os.path.expanduser(manual_dir or os.path.join(data_dir, "downloads", "manual"))
  ready = pathlib.Path(builder.data_dir, "dataset_info.json").exists()
  if not ready:
    _check_files(name, manual_dir, data_dir)
    import tensorflow_datasets as tfds

    try:
      builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
      )
    except Exception as error:  # noqa: BLE001 (TFDS's have no base class: a checksum that differs, a server's no)
      if not type(error).__module__.startswith("tensorflow_datasets."):
        raise
      raise PrepareError(f"{name}: {error}") from error
  file_format = builder.info.file_format.value
  if file_format != "array_record":
    raise PrepareError(
        f"{builder.data_dir} is there already, as {file_format}. Convert it:\n"
        f"  python -m bionets_jax.data.prepare --convert {builder.data_dir}"
    )
  if ready:
    return os.fspath(builder.data_dir), ["It was there already; to build it again, delete it."]
  return os.fspath(builder.data_dir), getattr(builder, "report", list)()


def _builder(name, data_dir):
  """Returns the builder of a set: of this package where there is one, else of TFDS."""
  import tensorflow_datasets as tfds

  entry = catalog.find(name)
  if entry and entry.builder:
    module, _, class_name = entry.builder.partition(":")
    base, _, version = name.partition(":")
    try:
      return getattr(importlib.import_module(module), class_name)(
          data_dir=data_dir, file_format="array_record", version=version or None,
          config=base.partition("/")[2] or None
      )
    except AssertionError as error:  # TFDS's, for a version that it does not have
      raise PrepareError(str(error)) from error
  known = tfds.list_builders(with_community_datasets=False)
  base = name.partition(":")[0].partition("/")[0]
  if base not in known:
    message = naming.unknown("data set", base, {*known, *catalog.SETS}).partition(" Known:")[0]
    raise PrepareError(
        message + " See --list and https://www.tensorflow.org/datasets/catalog."
    )
  # Asked before the download, which for some sets takes a night.
  stock = tfds.builder_cls(base).__module__.startswith("tensorflow_datasets.")
  if stock and importlib.util.find_spec("tensorflow") is None:
    raise PrepareError(_NEEDS_TENSORFLOW.format(name=base))
  return tfds.builder(name, data_dir=data_dir, file_format="array_record")


def _check_files(name, manual_dir, data_dir):
  entry = catalog.find(name)
  missing = [
      file for file in (entry.files if entry else ())
      if not os.path.exists(os.path.join(manual_dir, file))
  ]
  if missing:
    raise PrepareError(
        f"{name} is prepared from {', '.join(entry.files)}; {manual_dir} has no"
        f" {', no '.join(missing)}.\n{catalog.how_to(name, data_dir)}"
    )


def main(argv=None):
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog="python -m bionets_jax.data.prepare",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("name", nargs="?", help="e.g. cifar10, cropped_plantdoc or another TFDS name")
  parser.add_argument(
      "--data-dir", default="",
      help="where the sets are (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
  )
  parser.add_argument(
      "--manual-dir", default="",
      help="where files are that are not downloaded here, e.g. ImageNet's archives",
  )
  parser.add_argument("--list", action="store_true", help="say what there is and where from")
  parser.add_argument(
      "--convert", metavar="DIR", help="convert the TFRecord files of DIR = DATA_DIR/NAME/VERSION"
  )
  parser.add_argument(
      "--out", default="", metavar="DIR",
      help="with --convert: write to DIR = OTHER_DATA_DIR/NAME/VERSION instead of beside",
  )
  args = parser.parse_args(argv)
  if bool(args.name) + bool(args.convert) + args.list != 1:
    parser.error("give either the NAME of a set, --convert DIR or --list")
  if args.out and not args.convert:
    parser.error("--out goes with --convert")
  if args.list:
    print(catalog.listing(args.data_dir or "DIR"))
    return 0
  report = []
  try:
    if args.convert:
      directory = convert(args.convert, args.out)
      if not args.out:
        print("The TFRecord files are no longer needed here; delete them to save the space.")
    else:
      directory, report = prepare(args.name, args.data_dir, args.manual_dir)
  except (PrepareError, ValueError, OSError) as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  for line in report:
    print(line)
  print(f"Ready: {directory}")
  return 0


if __name__ == "__main__":
  sys.exit(main())

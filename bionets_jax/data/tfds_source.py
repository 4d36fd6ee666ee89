"""Image-classification sets of TensorFlow Datasets, read without TensorFlow."""

from bionets_jax.data.sources import Source
from bionets_jax.data.tfds_records import TfdsRecords, features_of


def _image_and_label(features, where):
  """Returns the names of the image and of the label feature."""
  import tensorflow_datasets as tfds

  pair = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
  for key, kind in pair.items():
    if key not in features or not isinstance(features[key], kind):
      listed = ", ".join(f"{k} ({type(v).__name__})" for k, v in features.items())
      raise ValueError(
          f"{where} is not an image-classification set: it needs the features image (Image) and"
          f" label (ClassLabel), and has {listed}."
      )
  return features["image"], features["label"]


class TfdsSource(Source):
  """One split of an image-classification set prepared by TFDS.

  Raises:
    FileNotFoundError: the set is not prepared.
    ValueError: not stored as ArrayRecord, unknown split, empty split, not image classification, or damaged
      metadata.
  """

  def __init__(self, name, split, data_dir=""):
    self.name = name
    self.split = split
    self._records = records = TfdsRecords(name, split, data_dir)
    self.location = records.location
    image, label = _image_and_label(records.features, self.location)
    shape = tuple(image.shape)
    if shape[-1] not in (1, 3):
      raise ValueError(
          f"{self.location}: images have the shape {shape}; the channels must be 1 or 3."
      )
    self.image_shape = shape
    self.class_names = tuple(label.names)

  def __len__(self):
    return len(self._records)

  def fingerprint(self):
    return self._records.crc32

  def read(self, index):
    return self._parse(index, self._records[index])

  def read_many(self, indices):
    # In bulk, all records are read before the first is decoded. That hides a remote
    # file's latency and pays for small images; from local files it takes photographs 4 times as long.
    if None in self.image_shape and "://" not in self.location:
      return super().read_many(indices)
    indices = [int(index) for index in indices]
    records = self._records.many(indices)
    return [self._parse(i, record) for i, record in zip(indices, records, strict=True)]

  def _parse(self, index, record):
    key = self.key(index)
    try:
      feature = features_of(record)
      # A record without one of the two has no value there.
      image, label = feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0]
    except (ValueError, IndexError) as error:
      raise ValueError(f"the record of {key} is damaged: it holds no image with a label") from error
    for field in ("file_name", "image/filename", "id"):
      if field in feature and feature[field].bytes_list.value:
        key += " " + feature[field].bytes_list.value[0].decode(errors="replace")
        break
    return image, label, key

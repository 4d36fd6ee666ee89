"""The input pipelines of torchvision and TensorFlow on the same files, each in a process of its own.

benchmarks/input.py starts it, as `python input_rivals.py NAME FOLDER SIZE BATCH CORE`, with the interpreter
that has the library. It answers every line on its standard input with one line:

  pass N     N images in batches; 'done'
  check N    the first N files, whole, resized to SIZE x SIZE, flattened, as hexadecimal uint8
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Share of the area and aspect ratio of the crops: RandomResizedCrop's.
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def torchvision_batches(files, size, batch):
  """uint8 (batch, 3, size, size) without end, as ImageFolder and a DataLoader without workers make them."""
  import torch
  from PIL import Image
  from torchvision import transforms

  torch.set_num_threads(1)
  transform = transforms.Compose([
      transforms.RandomResizedCrop(size, SCALE, RATIO), transforms.RandomHorizontalFlip(),
      transforms.PILToTensor()])

  class Files(torch.utils.data.Dataset):

    def __len__(self):
      return len(files)

    def __getitem__(self, index):
      with open(files[index], "rb") as file:
        return transform(Image.open(file).convert("RGB"))

  loader = torch.utils.data.DataLoader(Files(), batch, shuffle=True, drop_last=True)
  while True:
    yield from loader


def torchvision_whole(path, size):
  import numpy as np
  from PIL import Image
  from torchvision.transforms.functional import resize

  return np.asarray(resize(Image.open(path).convert("RGB"), [size, size]))


def tf_batches(files, size, batch, antialias):
  """uint8 (batch, size, size, 3) without end, one thread, only the crop decoded."""
  import tensorflow as tf

  def example(path):
    data = tf.io.read_file(path)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(data), tf.zeros((0, 0, 4)), min_object_covered=0.0,
        aspect_ratio_range=RATIO, area_range=SCALE, max_attempts=10, use_image_if_no_bounding_boxes=True)
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    # PIL's pixels need the accurate transform; TensorFlow's default is the fast one.
    image = tf.image.decode_and_crop_jpeg(
        data, window, channels=3, dct_method="INTEGER_ACCURATE" if antialias else "")
    image = tf.image.resize(image, (size, size), antialias=antialias)
    return tf.cast(tf.round(tf.image.random_flip_left_right(image)), tf.uint8)

  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  options.autotune.enabled = False
  # Among them is one that makes a batch ahead, while others are timed.
  options.experimental_optimization.apply_default_optimizations = False
  data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat().map(example)
  return data.batch(batch, drop_remainder=True).with_options(options).as_numpy_iterator()


def tf_whole(path, size, antialias):
  import tensorflow as tf

  image = tf.io.decode_jpeg(tf.io.read_file(path), 3, dct_method="INTEGER_ACCURATE")
  return tf.cast(tf.round(tf.image.resize(image, (size, size), antialias=antialias)), tf.uint8).numpy()


# name -> endless batches, one whole image
RIVALS = {
    "torchvision": (torchvision_batches, torchvision_whole),
    "tf.data": (lambda *a: tf_batches(*a, False), lambda *a: tf_whole(*a, False)),
    "tf.data antialias": (lambda *a: tf_batches(*a, True), lambda *a: tf_whole(*a, True)),
}


def main() -> None:
  name, folder, size, batch, core = sys.argv[1:]
  os.sched_setaffinity(0, {int(core)})  # before the library starts threads
  files = sorted(map(str, pathlib.Path(folder).glob("*/*.jpg")))
  make, whole = RIVALS[name]
  batches = iter(make(files, int(size), int(batch)))
  for line in sys.stdin:
    verb, number = line.split()
    if verb == "pass":
      for _ in range(int(number) // int(batch)):
        next(batches)
      print("done", flush=True)
    else:
      print(b"".join(whole(path, int(size)).tobytes() for path in files[:int(number)]).hex(), flush=True)


if __name__ == "__main__":
  main()

"""Ten crops, from the stored image to the averaged prediction, against PIL and NumPy written out."""

import io
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny import tiny_model

from bionets_jax.data.pipeline import make_pipeline
from bionets_jax.data.sources import open_source
from bionets_jax.training.devices import make_mesh
from bionets_jax.training.tasks import Classification

REAL = os.environ.get("BIONETS_TEST_DATA", "")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ten_crops(image: Image.Image, resize: int, size: int) -> np.ndarray:
  """Krizhevsky et al. 2012, as torchvision has it: corners and centre of the image whose shorter side is
  `resize`, and the same of its mirror image."""
  width, height = image.size
  if width <= height:
    image = image.resize((resize, int(resize * height / width)), Image.Resampling.BILINEAR)
  else:
    image = image.resize((int(resize * width / height), resize), Image.Resampling.BILINEAR)
  width, height = image.size
  corners = [(0, 0), (width - size, 0), (0, height - size), (width - size, height - size),
             (round((width - size) / 2), round((height - size) / 2))]
  return np.stack([np.asarray(view.crop((left, top, left + size, top + size)))
                   for view in (image, ImageOps.mirror(image)) for left, top in corners])


@pytest.mark.parametrize("name,directory,resize,size", [
    ("generated/imagenet2012", "", 40, 32),
    pytest.param("imagenet2012", REAL, 256, 224, marks=pytest.mark.skipif(
        not os.path.isdir(os.path.join(REAL, "imagenet2012")), reason="BIONETS_TEST_DATA has no imagenet2012"))])
@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_the_prediction_is_the_mean_over_ten_crops(name, directory, resize, size, average):
  count = 6
  pipeline = make_pipeline(
      name=name, dir=directory, train_split="train", eval_split=f"validation[:{count}]",
      train_transform=f"random_resized_crop({size})", eval_transform=f"resize({resize})|ten_crop({size})",
      workers=0, drop_remainder=True, batch_size=4, eval_batch_size=4, seed=0,
      mesh=make_mesh(jax.devices()[:1]))
  assert pipeline.eval_image_shape == (10, size, size, 3)
  model = tiny_model("resnet18", 1000)
  task = Classification(model, image_shape=pipeline.image_shape, mean=MEAN, std=STD, crop_average=average)
  params, state = jax.jit(task.init)(jax.random.key(1))
  batches = list(pipeline.eval_batches())
  found = [jax.jit(task.evaluate)(params, state, batch) for batch in batches]
  losses = np.concatenate([metrics["loss"] for metrics in found])[:count]
  top5 = np.concatenate([metrics["top5_error"] for metrics in found])[:count]

  source = open_source(name, f"validation[:{count}]", directory)
  apply = jax.jit(lambda x: model.apply({"params": params, **state}, x, train=False))
  for i in range(count):
    stored, label, _ = source.read(i)
    image = Image.open(io.BytesIO(stored)) if isinstance(stored, bytes) else Image.fromarray(stored)
    crops = ten_crops(image.convert("RGB"), resize, size)
    # Decoders of JPEG differ by a level or two; the network gets the ones that PIL decodes.
    ours = np.concatenate([batch["image"] for batch in batches])[i].astype(float)
    assert np.abs(ours - crops).max() <= 3 and np.abs(ours - crops).mean() < 0.5
    logits = np.asarray(apply(jnp.asarray((crops / 255.0 - MEAN) / STD, jnp.float32)), np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    mean = logits.mean(0)
    want = shares.mean(0) if average == "softmax" else np.exp(mean) / np.exp(mean).sum()
    assert losses[i] == pytest.approx(-np.log(want[label]), rel=5e-3)
    assert top5[i] == 100 * (label not in np.argsort(-want)[:5])

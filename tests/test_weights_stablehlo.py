"""StableHLO files: read back by jax alone they give the logits of the network that was exported."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model

from bionets_jax.counting import abstract_variables
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.stablehlo import export_stablehlo

INPUT = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), image_size=32, resize=32)
SHAPE = (32, 32, 3)
# Of each kind of unit one network, cut down to a block or two of every kind.
NETWORKS = {
    "ic_mobilenet": dict(alpha="learned_per_channel"),
    "fp_resnet20_cifar": dict(variant="journal"),
    "keffnet_b0": dict(stages=((3, 1, 160, 320, 6, 2),)),
}


def network(name, **options):
  """A small network, and variables of which no two layers have the same."""
  model = tiny_model(name, **options)
  leaves, tree = jax.tree.flatten(abstract_variables(model, SHAPE))
  random = np.random.RandomState(0)
  leaves = [random.uniform(0.2, 1.0, leaf.shape) / max(1, np.prod(leaf.shape[:-1])) for leaf in leaves]
  return model, jax.tree.unflatten(tree, [np.float32(leaf) for leaf in leaves])


def images(count, dtype=np.uint8):
  return np.random.RandomState(1).randint(0, 256, (count, *SHAPE)).astype(dtype)


def logits(model, variables, pixels):
  """By the network itself, with the arithmetic of the normalisation written out."""
  x = (np.float32(pixels) / np.float32(255) - np.float32(INPUT.mean)) / np.float32(INPUT.std)
  return np.asarray(jax.jit(model.apply)(variables, x))


def close(ours, theirs):
  return ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_every_kind_of_unit(name, tmp_path):
  model, variables = network(name, **NETWORKS[name])
  export_stablehlo(tmp_path / "file", model, variables, INPUT, SHAPE)
  read = jax.export.deserialize((tmp_path / "file").read_bytes())
  assert read.platforms == ("cpu", "cuda", "tpu")
  (taken,), (given,) = read.in_avals, read.out_avals
  assert (str(taken.shape), taken.dtype) == ("(b, 32, 32, 3)", np.uint8)
  assert (str(given.shape), given.dtype) == ("(b, 7)", np.float32)
  assert close(np.asarray(read.call(images(3))), logits(model, variables, images(3)))
  assert [file.name for file in tmp_path.iterdir()] == ["file"]


ALONE = """
import sys
import jax, numpy as np
network = jax.export.deserialize(open(sys.argv[1], 'rb').read())
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **{str(n): network.call(images[:n]) for n in (1, 5)})
loaded = [name for name in sys.modules if name.split('.')[0] in ('bionets_jax', 'flax')]
assert not loaded, loaded
"""


def test_a_process_with_nothing_but_jax_runs_it_at_any_batch_size(tmp_path):
  model, variables = network("ic_resnet20_cifar", alpha="scheduled")
  assert "scheduled" in variables
  file, pixels, out = tmp_path / "net.stablehlo", tmp_path / "pixels.npy", tmp_path / "logits.npz"
  np.save(pixels, images(5, np.float32) + np.float32(0.25))
  export_stablehlo(file, model, variables, INPUT, SHAPE, inputs="float32")
  # -I: neither the current folder nor PYTHONPATH is looked at.
  subprocess.run(
      [sys.executable, "-I", "-c", ALONE, *map(str, (file, pixels, out))], check=True, cwd=tmp_path,
      env=os.environ | {"JAX_PLATFORMS": "cpu"})
  expected = logits(model, variables, np.load(pixels))
  with np.load(out) as found:
    for count in (1, 5):
      assert close(found[str(count)], expected[:count])


def test_what_belongs_to_it_is_written_beside_it(tmp_path):
  model, variables = network("vgg16")
  export_stablehlo(tmp_path / "net.stablehlo", model, variables, INPUT, SHAPE, platforms=("cpu",),
                   about={"class_names": ["cat"], "model": "vgg16"})
  about = json.loads((tmp_path / "net.stablehlo.json").read_text())
  assert about == {
      "class_names": ["cat"], "model": "vgg16", "jax": jax.__version__, "platforms": ["cpu"],
      "inputs": {"dtype": "uint8", "shape": ["N", 32, 32, 3], "range": [0, 255]}}


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
  model, variables = network("vgg16")
  _, others = network("resnet20_cifar")
  more = variables["params"] | {"stage9_block0": {"conv": {"kernel": np.ones((3, 3, 8, 8), np.float32)}}}
  for arguments, options, message in (
      ((model, variables, INPUT, (32, 32)), {}, "image_shape"),
      ((model, variables, INPUT, (32, 32, 0)), {}, "image_shape"),
      ((model, variables, INPUT, (32, 32, 1)), {}, "mean=.* 3 numbers for images of 1 channels"),
      ((model, variables, INPUT, (2, 2, 3)), {}, "vanish"),
      ((model, variables, INPUT, SHAPE), {"platforms": ("gpu",)}, "'gpu' is none of cpu, cuda, rocm, tpu"),
      ((model, variables, INPUT, SHAPE), {"platforms": ()}, "give one at least"),
      ((model, variables, INPUT, SHAPE), {"inputs": "int8"}, "inputs='int8'"),
      ((model, variables | {"params": others["params"]}, INPUT, SHAPE), {}, "not those of this VGG"),
      # Nothing is left behind in silence.
      ((model, variables | {"params": more}, INPUT, SHAPE), {}, "does not call the layers of 1 variables"),
      ((model, variables, INPUT, SHAPE), {"about": {"model": object()}, "platforms": ("cpu",)}, "JSON"),
  ):  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
      export_stablehlo(tmp_path / "file", *arguments, **options)
  assert not list(tmp_path.iterdir())


def test_a_network_without_a_head_in_half_precision_gives_float32(tmp_path):
  model = tiny_model("resnet20_cifar", dtype=jnp.bfloat16).clone(num_classes=None)
  variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract_variables(model, SHAPE))
  export_stablehlo(tmp_path / "file", model, variables, INPUT, SHAPE, platforms=("tpu",))
  read = jax.export.deserialize((tmp_path / "file").read_bytes())
  assert (str(read.out_avals[0].shape), read.out_avals[0].dtype) == ("(b, 32)", np.float32)

"""python -m bionets_jax.figures: what the figures show, against the papers' rules written out and second
implementations; that no text is cut off or too small to read; the command line."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image
from scipy import ndimage
from tiny import tiny_model

from bionets_jax import ops
from bionets_jax.counting import abstract_variables
from bionets_jax.figures import (
  command_line,
  end_stopping,
  filters,
  fp_block,
  fp_filters,
  fp_product,
  ic_neuron,
  keffnet_groups,
)
from bionets_jax.figures.end_stopping import degree_of_end_stopping
from bionets_jax.figures.pairs import Pairs, find_pairs, pair_layers, random_angle_density
from bionets_jax.layers import FPBlock, GroupedPointwise

SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float64)
DIAGONAL = np.array([[0, 1, 2], [-1, 0, 1], [-2, -1, 0]], np.float64)
LAPLACIAN = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float64)


def loaded(name, channels=3, **options):
  """A network as weights.load gives it, untrained."""
  model = tiny_model(name, **options)
  shapes = abstract_variables(model, (16, 16, channels))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
  return types.SimpleNamespace(
      model=model, variables=variables, name=name, source="runs/tiny", image_shape=(16, 16, channels))


@pytest.fixture(scope="module")
def fp_network():
  return loaded("fp_resnet20_cifar", fp_layers="011")


# IC networks, Figure 2 --------------------------------------------------------------------------


def by_hand(w, adjust, b1, b2, x):
  """Eq. 3 with f = relu, in float64."""
  u = x @ np.asarray(w, np.float64)
  return np.maximum(u + np.maximum(u - adjust * x.sum(-1) + b1, 0) + b2, 0)


def test_the_papers_ic_neuron_is_xnor_and_no_xor():
  found = ic_neuron.neurons()
  corners = jnp.asarray(ic_neuron.CORNERS)
  # By hand, for (0, 0), (0, 1), (1, 0), (1, 1): .6463 - .3506, 0, 0, .5610 - .3506.
  np.testing.assert_allclose(found["c"](corners), [0.2957, 0, 0, 0.2104], atol=1e-6)
  assert (np.asarray(found["d"](corners)) == [0, 1, 1, 0]).all()  # XOR: of 1 - f


@pytest.mark.parametrize("key,eq_3", [
    ("a", ((1, -1), 0, -100, 0)),  # a hinge that never opens
    ("b", ((1, -1), 1, 0, 0)), ("c", ((0.2805, 0.2805), 1, 0.6463, -0.3506)), ("d", ((1, 1), 3, 2, -1))])
def test_each_neuron_is_eq_3(key, eq_3):
  x = np.random.default_rng(0).uniform(-2, 2, (500, 2)).astype(np.float32)
  value = by_hand(*eq_3, x.astype(np.float64))
  np.testing.assert_allclose(ic_neuron.neurons()[key](jnp.asarray(x)), 1 - value if key == "d" else value, atol=1e-5)


def test_an_ic_neuron_has_a_linear_piece_more_than_an_mp_neuron():
  side = np.linspace(-1, 1.3, 60, dtype=np.float32) + np.float32(0.0007)
  points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
  pieces = {key: ic_neuron.evaluate(neuron, points)[1] for key, neuron in ic_neuron.neurons().items()}
  assert {key: piece.max() + 1 for key, piece in pieces.items()} == {"a": 2, "b": 3, "c": 3, "d": 2}
  titles = [axes.get_title() for axes in ic_neuron.draw().axes]
  assert [int(title.split()[-3]) for title in titles if "pieces" in title] == [2, 3, 3, 2]
  x1, x2 = points.T
  # f = relu(x1 - x2 + relu(-2 x2)): where it is 0, where the hinge is open, and the rest.
  zero, opened = x1 - x2 + np.maximum(-2 * x2, 0) <= 0, x2 < 0
  for mask in (zero, opened & ~zero, ~opened & ~zero):
    assert len(set(pieces["b"][mask])) == 1


# FP-nets, Figure 1: images --------------------------------------------------------------------------


def test_responses_are_the_correlations_and_their_product():
  image = np.random.default_rng(1).uniform(0, 1, (17, 23)).astype(np.float32)
  a, b = (ndimage.correlate(image.astype(np.float64), kernel)[1:-1, 1:-1] for kernel in (SOBEL, SOBEL.T))
  for found, expected in zip(fp_product.respond(image), (a, b, a * b), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_product_of_sobels_filters_sees_corners_and_line_ends_and_oblique_edges():
  corner = np.zeros((9, 9))
  corner[5:, 5:] = 1
  product = fp_product.respond(corner).product
  assert product[3:5, 3:5].tolist() == [[1, 3], [3, 9]] and np.count_nonzero(product) == 4
  for image in (np.repeat(np.arange(9.0)[None] ** 2, 9, 0), np.repeat(np.arange(9.0)[:, None] > 4, 9, 1)):
    found = fp_product.respond(image)
    assert (found.product == 0).all() and max(abs(found.a).max(), abs(found.b).max()) > 1
  product = fp_product.respond(fp_product.shapes()).product
  square, bar = product[4:26, 4:28], product[42:51, 5:31]  # each alone in its part
  assert np.count_nonzero(square) == 16
  assert np.count_nonzero(bar) and not bar[:, 6:-6].any() and abs(bar.sum()) < 1e-5
  upper_left_edge = [product[15 - i, 33 + i] for i in range(2, 9)]  # of the square turned by 45 degrees
  assert min(upper_left_edge) > 4
  assert 0.2 < fp_product.digit().mean() < 0.4


# Filter pairs -----------------------------------------------------------------------------------------


def test_angles_of_pairs():
  a = np.stack([SOBEL, SOBEL, SOBEL, SOBEL], -1).astype(np.float32)
  b = np.stack([SOBEL.T, 3 * SOBEL, -SOBEL, SOBEL + SOBEL.T], -1).astype(np.float32)
  np.testing.assert_allclose(Pairs("", a, b).angles(), [90, 0, 180, 45], atol=1e-5)
  a[..., 0] = 0
  assert np.isnan(Pairs("", a, b).angles()[0])


def test_density_of_random_angles():
  # The integral of sin^7 over 0..pi is 32/35, of sin^2 pi/2.
  assert random_angle_density(np.array([90.0]), 9)[0] == pytest.approx(math.pi / 180 * 35 / 32)
  assert random_angle_density(np.array([90.0]), 4)[0] == pytest.approx(math.pi / 180 / (math.pi / 2))
  rng = np.random.default_rng(2)
  pairs = Pairs("", *rng.standard_normal((2, 3, 3, 20_000)))
  seen, _ = np.histogram(pairs.angles(), np.arange(0, 181, 20))
  at = np.arange(0, 180, 0.1) + 0.05
  expected = random_angle_density(at, 9).reshape(9, -1).sum(1) * 0.1
  np.testing.assert_allclose(seen / 20_000, expected, atol=4 * 0.5 / math.sqrt(20_000))


def test_the_pairs_of_a_network_are_found(fp_network):
  pairs = find_pairs(fp_network.variables)
  assert [(p.path, p.a.shape) for p in pairs] == [
      ("stage2_block0/filters", (3, 3, 32)), ("stage3_block0/filters", (3, 3, 64))]
  kernel = fp_network.variables["params"]["stage3_block0"]["filters"]["kernel_b"]
  assert (pairs[1].b[..., 5] == np.asarray(kernel)[:, :, 0, 5]).all()
  units = pair_layers(fp_network.model, fp_network.variables, fp_network.image_shape)
  assert list(units) == [p.path for p in pairs] and units[pairs[0].path].combine == "product"


# End-stopping --------------------------------------------------------------------------------------------


def linear(kernel):
  kernel = jnp.asarray(kernel, jnp.float32)[:, :, None, None]
  return lambda x: ops.depthwise_conv(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1)))


def pair(a, b):
  a, b = (jnp.asarray(kernel, jnp.float32)[:, :, None, None] for kernel in (a, b))
  return lambda x: ops.paired_depthwise_product(x, a, b)


def test_pairs_that_ignore_edges_are_end_stopped_and_others_are_not():
  for a, b in ((SOBEL, SOBEL.T), (DIAGONAL, DIAGONAL[::-1])):
    assert degree_of_end_stopping(pair(a, b), 3) == 1
    assert degree_of_end_stopping(linear(a), 3) < 0.05
    assert degree_of_end_stopping(pair(a, a), 3) < 0.2
  # By hand: responses of 1 along the edges, of 2, 1, 1 and 0 at the corners, so 1.5 in the mean square.
  assert degree_of_end_stopping(linear(LAPLACIAN), 3) == pytest.approx((1.5 - 1) / (1.5 + 1))
  assert degree_of_end_stopping(linear(np.ones((3, 3))), 3) < -0.7
  assert degree_of_end_stopping(linear(np.zeros((3, 3))), 3) == 0
  with pytest.raises(ValueError, match="13 x 13"):
    degree_of_end_stopping(linear(SOBEL), 13)


@pytest.mark.parametrize("degrees", [0, 30, 45])
def test_where_the_edges_and_corners_of_the_square_are(degrees):
  s = end_stopping.stimulus(degrees, 3)
  assert s.image.sum() == pytest.approx(256, abs=1.5)
  if not degrees:
    assert (s.image[8:24, 8:24] == 1).all() and s.image.sum() == 256
    assert [mask.sum() for mask in s.corners] == [4] * 4 and [mask.sum() for mask in s.edges] == [2 * 14] * 4
  # What the window of each pixel holds, from the image itself.
  least, most = ndimage.minimum_filter(s.image, 3), ndimage.maximum_filter(s.image, 3)
  edges, corners = s.edges.sum(0), s.corners.sum(0)
  assert ((most - least)[edges == 1] > 0).mean() > 0.9  # of the others the window only touches the edge
  assert max(edges.max(), corners.max()) == 1 and not (edges * corners).any()
  assert (least[s.planes[0]] == 1).all() and (most[s.planes[1]] == 0).all()
  assert (edges + corners + s.planes.sum(0) <= 1).all() and (edges + corners + s.planes.sum(0)).mean() > 0.85
  if degrees == 45:  # the image is the same along each edge
    for (first, second), kernel in ((s.edges[:2], DIAGONAL), (s.edges[2:], DIAGONAL[::-1])):
      assert abs(ndimage.correlate(s.image.astype(np.float64), kernel)[first | second]).max() < 1e-6


# FP-nets, Figure 1: the block ---------------------------------------------------------------------------


def test_the_steps_of_the_block_are_the_papers():
  found = fp_block.steps(FPBlock(64, expansion=2, pool=True), (32, 32, 32))
  assert [(s.label, s.shape, s.parameters) for s in found] == [
      ("conv 1 x 1", (32, 32, 128), 32 * 128), ("batch norm", (32, 32, 128), 256), ("ReLU", (32, 32, 128), 0),
      ("depthwise 3 x 3", (32, 32, 128), 2 * 9 * 128), ("batch norm, not affine", (32, 32, 128), 0),
      ("conv 1 x 1", (32, 32, 64), 128 * 64), ("batch norm", (32, 32, 64), 128), ("ReLU", (32, 32, 64), 0),
      ("max-pool 2 x 2", (16, 16, 64), 0)]
  # Eq. 4 with q = 2, k = 3.
  assert sum(s.parameters for s in found if "norm" not in s.label) == 2 * 32 * 64 + 2 * 2 * 9 * 64 + 2 * 64**2


# kEffNet, Figure 1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels,features,least,n", [(16, 8, 4, 4), (8, 16, 4, 2), (12, 3, 4, 3)])
def test_the_connections_are_those_of_the_papers_rules(channels, features, least, n):
  found = keffnet_groups.read_connections(GroupedPointwise(features, min_group_channels=least), channels)
  i, f, per_group = np.arange(channels), np.arange(features), features // n
  assert (found.first == (i[:, None] // (channels // n) == f // per_group)).all()
  # I[r N + g] = K[g s + r], s features in a group.
  order = [g * per_group + r for r in range(per_group) for g in range(n)]
  assert found.order.tolist() == order
  second = channels >= features
  if second:
    assert (found.second == (f[:, None] // per_group == f // per_group)).all() and (found.added == f).all()
  else:
    assert found.second is None and found.added is None
  assert found.parameters == channels * features // n + second * features**2 // n


def test_groups_that_cannot_be_drawn_are_refused():
  with pytest.raises(ValueError, match="a single group"):
    keffnet_groups.draw(16, 8, 16)
  with pytest.raises(ValueError, match="1 to 128"):
    keffnet_groups.draw(1280, 320, 16)


# Pictures of filters -----------------------------------------------------------------------------------------


def test_a_patch_is_its_filter(fp_network):
  figure = filters.draw_filters(fp_network)
  assert len(figure.axes) == 3  # the first layer, and two with pairs
  image = next(image for image in figure.axes[0].get_children() if isinstance(image, AxesImage)).get_array()
  kernel = np.asarray(fp_network.variables["params"]["stem_conv"]["kernel"])[..., 0]
  middles = np.asarray(image)[[[5], [13], [21]], [5, 13, 21]]  # of the first patch, 3 x 3 squares of 8 in a frame
  np.testing.assert_allclose(middles, 0.5 + 0.5 * kernel / abs(kernel).max(), atol=1e-6)
  labels = [text.get_text() for text in figure.axes[1].texts]
  degrees = find_pairs(fp_network.variables)[0].angles()
  assert len(labels) == 12 and labels[0] == f"{degrees.min():.0f}°" and labels[-1] == f"{degrees.max():.0f}°"


def test_networks_without_pairs_or_without_a_first_convolution():
  for channels, features, shown in ((1, 5, "5 filters"), (3, 70, "64 of 70 filters"), (4, 17, "16 of 17 filters")):
    kernel = {"params": {"stem_conv": {"kernel": np.ones((3, 3, channels, features), np.float32)}}}
    (axes,) = filters.draw_filters(types.SimpleNamespace(variables=kernel)).axes
    assert axes.get_title("left") == f"stem_conv: {shown} of 3 x 3 x {channels}; mid-grey is 0"
  no_angle = {"params": {"pair": {"kernel_a": np.zeros((3, 3, 1, 1)), "kernel_b": np.ones((3, 3, 1, 1))}}}
  (axes,) = filters.draw_filters(types.SimpleNamespace(variables=no_angle)).axes
  assert [text.get_text() for text in axes.texts] == ["-"]
  variables = {"params": {"head": {"kernel": np.ones((4, 2))}}}
  dense = types.SimpleNamespace(variables=variables, source="w.npz", name="net")
  assert filters.draw_filters(dense) is None
  with pytest.raises(ValueError, match="w.npz: net has no filter pairs"):
    fp_filters.draw(dense)


# How they look -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", command_line.DRAWINGS)
def test_no_text_is_cut_off_or_too_small(name, fp_network):
  options = types.SimpleNamespace(loaded=fp_network, weights="runs/tiny", groups={})
  figure = command_line.DRAWINGS[name].draw(options)
  assert figure.get_figwidth() == pytest.approx(3.4)
  figure.draw_without_rendering()
  page = figure.bbox.padded(1)
  # Ticks beyond the limits of their axes exist and are not drawn; constrained layout sees to the others.
  ticks = {id(label) for axes in figure.findobj(Axes) for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
  texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
  for text in texts:
    assert text.get_fontsize() >= 6.5, text
    box = text.get_window_extent()
    inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert inside or id(text) in ticks, text
  assert len(texts) > 3


# The command line --------------------------------------------------------------------------------------------


def test_figures_are_written_as_png_and_pdf(tmp_path, capsys):
  out = tmp_path / "new" / "figures"
  arguments = ["keffnet-groups", "--channels=24", "--features=6", "--min-group-channels=4", f"--out={out}"]
  assert command_line.main(arguments) == 0
  assert sorted(p.name for p in out.iterdir()) == ["keffnet-groups.pdf", "keffnet-groups.png"]
  with Image.open(out / "keffnet-groups.png") as picture:
    assert picture.size[0] == 1020 and np.asarray(picture.convert("L")).std() > 10  # 3.4 inches at 300 dots
  assert (out / "keffnet-groups.pdf").read_bytes().startswith(b"%PDF")
  assert str(out / "keffnet-groups.png") in capsys.readouterr().out


def test_all_leaves_out_what_needs_weights(tmp_path, capsys, monkeypatch):
  drawn = []
  for name, drawing in command_line.DRAWINGS.items():
    monkeypatch.setitem(command_line.DRAWINGS, name, drawing._replace(
        draw=lambda options, name=name: drawn.append(name) or Figure(figsize=(1, 1))))
  assert command_line.main(["all", f"--out={tmp_path}"]) == 0
  assert drawn == ["ic-neuron", "fp-product", "fp-block", "keffnet-groups"]
  out = capsys.readouterr().out
  assert "fp-filters: left out" in out and "filters: left out" in out and "configs/fp_digits.py" in out


def test_the_list_names_every_figure_and_the_commands_of_the_others(capsys):
  assert command_line.main(["--list"]) == 0
  out = capsys.readouterr().out
  assert all(f"{name} " in out for name in command_line.DRAWINGS)
  assert "bionets_jax.report results" in out and "bionets_jax.heatmaps" in out


@pytest.mark.parametrize("arguments,message", [
    ((), "name a figure"), (("fig-9",), "fig-9: no such figure"),
    (("fp-filters",), "fp-filters shows a trained network; give --weights=SOURCE"),
    (("ic-neuron", "--weights=x"), "ic-neuron shows no trained network"),
    (("filters", "--weights=no/such"), "no/such: no such file or directory"),
    (("ic-neuron", "--channels=8"), "--channels is of keffnet-groups"),
    (("keffnet-groups", "--features=0"), "--features=0: give 1 or more"),
    (("ic-neuron", f"--out={__file__}"), "is a file; name a folder")])
def test_wrong_usage(arguments, message, capsys):
  with pytest.raises(SystemExit) as left:
    command_line.main(arguments)
  assert left.value.code == 2 and message in capsys.readouterr().err


def test_what_cannot_be_drawn_is_one_line_and_status_1(tmp_path, capsys):
  assert command_line.main(["keffnet-groups", "--channels=7", f"--out={tmp_path}"]) == 1
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: 7 to 8 channels") and "a single group" in lines[0]

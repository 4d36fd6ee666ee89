"""The self-check: it finds what it is to find, and says so. Whole it is run by hand."""

import json

import jax
import numpy as np
import pytest

from bionets_jax.data.order import BatchPlan
from bionets_jax.selfcheck import runs
from bionets_jax.selfcheck.check import Check, Context, table
from bionets_jax.selfcheck.command_line import parse, run
from bionets_jax.selfcheck.reference import check_reference
from bionets_jax.training.loop import Interrupted


def checked(tmp_path, *names):
  path = tmp_path / "found.json"
  status = run(parse([f"--json={path}", "--only", *names]), str(tmp_path))
  return status, json.loads(path.read_text())


def test_an_example_that_comes_twice_is_found(tmp_path, capsys, monkeypatch):
  status, found = checked(tmp_path, "order")
  assert status == 0 and found["ok"] and found["checks"][0]["difference"] == 0
  assert "4 x cpu" in found["devices"] and "all is exact" in capsys.readouterr().out
  indices = BatchPlan.indices

  def twice(self, step):
    epoch, found = indices(self, step)
    return epoch, np.where(found == 3, 5, found)  # in the place of another

  monkeypatch.setattr(BatchPlan, "indices", twice)
  status, found = checked(tmp_path, "order")
  assert status == 1 and not found["ok"] and found["checks"][0]["difference"] == 2
  assert "NOT OK" in capsys.readouterr().out


def test_a_gradient_that_is_not_the_loss_s_is_found(tmp_path, monkeypatch):
  """The step keeps its loss and scales its gradient by 1.001."""
  config = runs.small_config

  def smaller(context):
    out = config(context)
    out.model.name, out.model.options.stage_sizes, out.model.options.width = "ic_vgg16", (1,), 4
    return out

  monkeypatch.setattr("bionets_jax.selfcheck.reference.small_config", smaller)
  grad = jax.grad
  monkeypatch.setattr(jax, "grad", lambda *a, **k: lambda *x: jax.tree.map(
      lambda g: g * 1.001 if jax.numpy.issubdtype(g.dtype, jax.numpy.floating) else g, grad(*a, **k)(*x)))
  context = Context(str(tmp_path), lambda text: None, jax.devices()[:1], False, "auto")
  single, slope = check_reference(context)
  assert single.ok and single.difference > 0
  assert not slope.ok and slope.difference == pytest.approx(1e-3, rel=1e-2)


def test_a_check_that_is_stopped_proves_nothing(tmp_path, capsys, monkeypatch):
  def stopped(*args, **options):
    raise Interrupted

  monkeypatch.setattr(runs, "train", stopped)
  assert run(parse(["--only", "runs"]), str(tmp_path)) == 75
  assert "is exact" not in capsys.readouterr().out


def test_equal_to_the_bit_or_near():
  def made(loss, array):
    return runs._Made([loss], [{"eval/loss": 1.0}], [np.asarray(array, np.float32)], b"")
  one = made(2.0, [3.0, 0.0])
  assert runs._same("twice", "", one, made(2.0, [3.0, 0.0])).difference == 0
  for other in (made(2.0, [3.0, -0.0]), made(2.0 * (1 + 1e-15), [3.0, 0.0]), made(2.0, [np.nextafter(3.0, 4, dtype="f"), 0])):
    assert not runs._same("twice", "", one, other).ok and runs._near("devices", "", one, other).ok
  for other in (made(2.001, [3.0, 0.0]), made(2.0, [3.0, 0.01]), made(2.0, [3.0, np.nan]), made(np.nan, [3.0, 0.0])):
    assert not runs._near("devices", "", one, other).ok


def test_the_table_tells_what_was_not_made():
  lines = table([Check("devices", "1 and several", None, 1e-4, note="one device"), Check("order", "x", 2, 0, "examples")])
  assert "not made" in lines and "-  one device" in lines and "2 examples" in lines and "NOT OK" in lines
  assert Check("devices", "", None, 0.0).ok
  with pytest.raises(SystemExit):
    parse(["--json=/nowhere/at/all.json"])

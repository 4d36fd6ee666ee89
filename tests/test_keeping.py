"""Which checkpoints of a run are kept."""


import pytest
from saved_states import clock_of, make_state, quiet
from tiny import tiny_config

from bionets_jax.training.checkpoints import Checkpoints
from bionets_jax.training.keeping import Keep, kept
from bionets_jax.training.setup import make_setup


@pytest.mark.parametrize("keep,want", [
    (Keep(last=1), {7}),
    (Keep(last=3), {5, 6, 7}),
    (Keep(last=1, best=1), {3, 7}),
    (Keep(last=2, best=2), {2, 3, 6, 7}),  # 2, 4 and 6 are equal: the earliest
    (Keep(last=1, best=9), {1, 2, 3, 4, 6, 7}),  # of 5 there is no error
    (Keep(last=1, every=2), {2, 4, 6, 7}),
    (Keep(last=1, every=3), {3, 6, 7}),
    (Keep(last=1, every=100), {7}),
])
def test_what_is_kept(keep, want):
  errors = {1: 9.0, 2: 4.0, 3: 2.0, 4: 4.0, 5: float("nan"), 6: 4.0, 7: 8.0}
  assert kept(errors, keep) == want
  # Removing step by step, as a run does, comes to the same where the error falls and rises once.
  there = {}
  for step, error in errors.items():
    there[step] = error
    there = {s: there[s] for s in kept(there, keep)}
  assert set(there) == want


def test_a_period_keeps_its_first_checkpoint_wherever_the_saves_fall():
  there = set()
  for step in (50, 100, 130, 150, 199, 200, 260, 420):
    there = kept(dict.fromkeys(there | {step}), Keep(last=1, every=100))
  assert there == {100, 200, 420}


def test_a_run_keeps_its_best_and_its_periods_also_behind_an_interruption(tmp_path):
  errors = {5: 30.0, 10: 10.0, 15: 20.0, 20: 15.0, 25: 40.0, 30: 50.0}
  for steps in ((5, 10, 15), (20, 25, 30)):
    checkpoints = Checkpoints(str(tmp_path), Keep(last=1, best=1, every=20), say=quiet)
    for step in steps:
      checkpoints.save(step, make_state(step), clock_of(step, errors[step]))
    checkpoints.wait()
  assert checkpoints.steps() == [10, 20, 30]


@pytest.mark.parametrize("changes,message", [
    (dict(keep_checkpoints=0), "keep_checkpoints=0"), (dict(keep_best=-1), "keep_best=-1: give 0 or more"),
    (dict(keep_every="often"), "keep_every='often'"), (dict(keep_every="0 steps"), "keep_every='0 steps' is less")])
def test_bad_values_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    make_setup(tiny_config(**changes))

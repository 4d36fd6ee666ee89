import pickle

import numpy as np
import pytest

from bionets_jax.data.order import BatchPlan, EvalPlan


def test_every_epoch_visits_each_example_once_in_another_order():
  plan = BatchPlan(num_examples=10, batch_size=4, seed=3, drop_remainder=False)
  assert plan.steps_per_epoch == 3
  assert plan.batch_sizes == (4, 2)
  orders = []
  for epoch in range(3):
    batches = [plan.indices(3 * epoch + i) for i in range(3)]
    assert [e for e, _ in batches] == [epoch] * 3
    assert [len(rows) for _, rows in batches] == [4, 4, 2]
    orders.append(np.concatenate([rows for _, rows in batches]))
    assert sorted(orders[-1]) == list(range(10))
  assert not np.array_equal(orders[0], orders[1])
  assert not np.array_equal(orders[1], orders[2])


def test_the_order_is_numpys_frozen_shuffle():
  plan = BatchPlan(num_examples=10, batch_size=5, seed=7, drop_remainder=True)
  expected = np.random.RandomState([7, 2]).permutation(10)
  epoch, rows = plan.indices(5)
  assert epoch == 2
  np.testing.assert_array_equal(rows, expected[5:])
  # Written down once: if this changes, no earlier run can be resumed or reproduced.
  np.testing.assert_array_equal(BatchPlan(6, 6, 0, False).indices(0)[1], [3, 5, 4, 0, 2, 1])
  np.testing.assert_array_equal(
      BatchPlan(8, 8, 123, False).indices(4)[1], [1, 3, 2, 4, 6, 0, 5, 7]
  )


def test_dropping_leaves_out_the_tail_of_each_permutation():
  plan = BatchPlan(num_examples=10, batch_size=4, seed=3, drop_remainder=True)
  assert plan.steps_per_epoch == 2
  assert plan.batch_sizes == (4,)
  kept = np.concatenate([plan.indices(step)[1] for step in (2, 3)])
  np.testing.assert_array_equal(kept, np.random.RandomState([3, 1]).permutation(10)[:8])


def test_a_step_does_not_depend_on_what_was_asked_before():
  plan = BatchPlan(num_examples=23, batch_size=5, seed=1, drop_remainder=False)
  steps = [17, 0, 4, 5, 40, 3, 17]
  for step in steps:
    fresh = BatchPlan(num_examples=23, batch_size=5, seed=1, drop_remainder=False)
    np.testing.assert_array_equal(plan.indices(step)[1], fresh.indices(step)[1])
  copy = pickle.loads(pickle.dumps(plan))
  np.testing.assert_array_equal(copy.indices(9)[1], plan.indices(9)[1])


def test_a_set_smaller_than_the_batch_is_one_small_batch():
  plan = BatchPlan(num_examples=3, batch_size=8, seed=0, drop_remainder=False)
  assert plan.batch_sizes == (3,)
  assert plan.steps_per_epoch == 1
  assert sorted(plan.indices(1)[1]) == [0, 1, 2]
  with pytest.raises(ValueError, match="batch_size=8 is larger than the 3 training examples"):
    BatchPlan(num_examples=3, batch_size=8, seed=0, drop_remainder=True)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed):
  with pytest.raises(ValueError, match="seed must be in"):
    BatchPlan(num_examples=3, batch_size=1, seed=seed, drop_remainder=False)


@pytest.mark.parametrize("num_examples", [1, 5, 6, 7, 103])
def test_evaluation_sees_every_example_once_in_order(num_examples):
  plan = EvalPlan(num_examples, batch_size=6)
  batches = [plan.indices(step)[1] for step in range(plan.num_steps)]
  assert {len(batch) for batch in batches} == {6}
  rows = np.concatenate(batches)
  np.testing.assert_array_equal(rows[rows >= 0], np.arange(num_examples))
  assert (rows[num_examples:] == -1).all()

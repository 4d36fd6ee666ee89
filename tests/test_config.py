"""Configs: what is wrong with one is said at once, with what would be right."""

import ml_collections
import pytest
from tiny import tiny_config, tiny_wld_config

from bionets_jax.training import config as config_lib
from bionets_jax.training.learning import model_options
from bionets_jax.training.setup import make_setup


@pytest.mark.parametrize("changes,match", [
    (dict(model__name="resnet_20"), "unknown model 'resnet_20'.*did you mean"),
    (dict(model__name=""), "model.name is empty"),
    (dict(data__name="digitz"), "digits"),
    (dict(data__train_transform="pad_krop(1)"), "pad_crop"),
    (dict(batch_size=30), "30.*4"),
    (dict(batch_size=0), "batch_size=0"),
    (dict(batch_norm="groups(3)"), "batch of 32 does not divide"),
    (dict(batch_norm="local"), "groups"),
    (dict(accumulate=5), "accumulate=5"),
    (dict(duration="3 weeks"), "config.duration='3 weeks'"),
    (dict(log_every="0.5 steps"), "config.log_every"),
    (dict(dtype="float8"), "config.dtype='float8'"),
    (dict(schedule__kind="poly"), "step, exponential, cyclical25, cosine, constant"),
    (dict(optimizer__decay="some"), "'all' or 'kernels'"),
    (dict(data__mean=(0.1, 0.2)), "2 numbers for images of 1 channels"),
    (dict(data__mean=()), "neither a teacher nor config.model.weights"),
    (dict(data__mean=(76.0,)), "0..1"),
    (dict(data__std=(0.0,)), "positive"),
    (dict(eval_every="0 steps"), "config.eval_every='0 steps' is less than a step"),
    (dict(ema_decay=1.0), "config.ema_decay=1.0"),
    (dict(label_smoothing=-0.1), "config.label_smoothing=-0.1"),
    (dict(model__options=ml_collections.ConfigDict(dict(num_classes=3))), "the data decides"),
    (dict(task="classify"), "did you mean 'classification'"),
])
def test_wrong_values_fail_at_once(changes, match):
  with pytest.raises((ValueError, FileNotFoundError), match=match):
    make_setup(tiny_config(**changes))


def test_wrong_device_is_refused():
  with pytest.raises(RuntimeError, match="config.device='gpu', but JAX found only 'cpu'"):
    make_setup(tiny_config(device="gpu"))


def test_keys_that_nothing_reads():
  config = tiny_config()
  config.data.worker = 3
  with pytest.raises(ValueError, match="config.data.worker: nothing reads this key.*'data.workers'"):
    config_lib.check_config(config)
  config = tiny_config()
  config.wld = ml_collections.ConfigDict(dict(tolerance=0.1))
  with pytest.raises(ValueError, match="wld.tolerance.*belongs to task 'wld'"):
    config_lib.check_config(config)
  config = tiny_config()
  del config.ema_decay
  with pytest.raises(ValueError, match="config.ema_decay is missing"):
    config_lib.check_config(config)
  with config.ignore_type():
    config.ema_decay = "0.9"
  with pytest.raises(ValueError, match="config.ema_decay='0.9' should be of type float"):
    config_lib.check_config(config)


def test_alpha_on_the_command_line_is_text():
  config = tiny_wld_config("")
  for text, value in (("learned", "learned"), ("0.02", 0.02), ("1.0", 1.0)):
    config.model.options.alpha = text
    assert model_options(config)["alpha"] == value
  config.model.options.alpha = "lerned"
  with pytest.raises(ValueError, match="learned_per_channel"):
    make_setup(tiny_config(model__name="ic_resnet20_cifar",
                           model__options=config.model.options))


@pytest.mark.parametrize("key,value,match", [
    ("distill", "foo", "soft_cross_entropy"), ("hinge", "foo", "batch, example"),
    ("temperature", 0.0, "above 0"), ("distill_weight_shape", "foo", "cosine")])
def test_wrong_wld_options_fail_before_anything_is_read(key, value, match):
  config = tiny_wld_config("/no/such/teacher")
  config.wld[key] = value
  with pytest.raises(ValueError, match=f"config.wld: .*{match}"):
    make_setup(config)


@pytest.mark.parametrize("weights,match", [
    ("", "weights is empty"), ("/no/such.pth", "no such file"), (".", "not the workdir of a run")])
def test_wrong_teachers(weights, match):
  with pytest.raises((ValueError, FileNotFoundError), match=match):
    make_setup(tiny_wld_config(weights))


def test_unfinished_teacher(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match="not finished"):
    make_setup(tiny_wld_config(str(tmp_path)))


def test_options_that_a_config_does_not_declare_come_from_the_command_line():
  from bionets_jax.command_line import _new_options
  known = {"model.options.alpha": "learned", "detector.options": {}, "seed": 0}
  arguments = ["launch.py", "--config.seed=1", "--config.model.options.alpha=0.5",
               "--config.model.options.fp_layers=011", "--config.model.options.expansion=1.5",
               "--config.model.options.single_filter=true", "--config.model.name=x",
               "--config.detector.options.strides=(4, 8)"]
  rest, added = _new_options(arguments, known)
  assert rest == [arguments[i] for i in (0, 1, 2, 6)]
  assert added == {"model.options.fp_layers": "011", "model.options.expansion": 1.5,
                   "model.options.single_filter": True, "detector.options.strides": (4, 8)}
  assert _new_options(arguments, {"runs.a.model.options": {}}) == (arguments, {})  # a study's are said to be none


def test_a_run_from_before_a_key_existed_is_the_same_run():
  config = tiny_config()
  stored = config_lib.to_json(config)
  del stored["mixup"], stored["optimizer"]["kind"]
  assert config_lib.differences(config, stored) == []
  config.mixup = 0.2
  assert config_lib.differences(config, stored) == ["mixup: 0.0 -> 0.2"]

"""Runs the tests on four virtual CPU devices and keeps compiled programs between runs."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
_CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most of the time goes into compiling programs that run once. XLA's optimiser of machine code takes half
# of it; and JAX's default generator, threefry, most of what compiling an initialisation takes.
# tests/test_command_line.py and the quickstart run with the defaults.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_DEFAULT_PRNG_IMPL", "rbg")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import data_tools  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def float64():
  """float64 for the test that asks for it."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def mesh():
  """Of the first device alone."""
  return data_tools.one_device()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder of images of many sizes, in splits and classes."""
  return data_tools.make_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """What one file of tests has compiled is of no use to the next, and adds up to gigabytes."""
  yield
  jax.clear_caches()

"""The reader of torch.save's files: equal to torch on real files, harmless on hostile ones."""

import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from bionets_jax.weights import TorchFileError, read_tensors, read_torch_file

FILES = pathlib.Path(__file__).parent / "fixtures" / "torch_files"
LAYOUTS = ("zip", "legacy")


# --- files that torch wrote -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stem", ("tensors", "run"))
def test_tensors_equal_what_torch_saved(stem, layout):
  """All dtypes, views, 0-d, empty, Parameters; by themselves and inside a training run."""
  tensors = read_tensors(FILES / f"{stem}_{layout}.pth")
  with np.load(FILES / "expected.npz") as expected:
    assert list(tensors) == list(expected)
    for key, value in expected.items():
      ours = tensors[key]
      assert ours.dtype.name == {"bfloat16": "bfloat16"}.get(key, value.dtype.name), key
      assert ours.shape == value.shape, key
      np.testing.assert_array_equal(ours.astype(value.dtype), value, err_msg=key)
      assert not ours.flags.writeable or ours.size == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_rest_of_a_run_is_read_too(layout):
  run = read_torch_file(FILES / f"run_{layout}.pth")
  assert (run["epoch"], run["best"], run["arch"]) == (3, 91.5, "linear")
  assert (run["dtype"], run["shape"]) == ("float16", (1, 2))
  assert run["optimizer"]["state"][0]["momentum_buffer"].shape == (2, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_models_are_refused_with_advice(layout):
  with pytest.raises(TorchFileError, match=r"whole pickled model.*state_dict"):
    read_tensors(FILES / f"model_{layout}.pth")


def test_torchscript_is_refused_with_advice():
  with pytest.raises(TorchFileError, match=r"TorchScript.*state_dict"):
    read_tensors(FILES / "torchscript.pt")


def test_torch_is_not_imported():
  code = (
      "import sys; from bionets_jax.weights import read_tensors;"
      f"read_tensors({str(FILES / 'run_zip.pth')!r});"
      "assert not {'torch', 'jax', 'flax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=FILES.parents[2])


# --- files that nobody's torch wrote --------------------------------------------------------------


class Payload:
  """Unpickles to the effect of a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def opcodes(value):
  """`value` as pickle opcodes without frame and stop."""
  return pickle.dumps(value, 2)[2:-1]


def tensor_opcodes(offset=0, size=(2,), stride=(1,), *, key="0", numel=4, kind="FloatStorage"):
  """The opcodes by which torch describes a tensor, with any numbers in it."""
  storage = (
      b"(" + opcodes("storage") + f"ctorch\n{kind}\n".encode() + opcodes(key) + opcodes("cpu")
      + opcodes(numel) + b"tQ"
  )  # fmt: skip
  rest = opcodes(offset) + opcodes(size) + opcodes(stride) + opcodes(False) + opcodes({})
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def write(path, layout, body, storages=None, prefix="archive"):
  """Writes a torch file around the opcodes `body`; storages: key -> bytes of float32."""
  storages = {"0": np.arange(4, dtype=np.float32).tobytes()} if storages is None else storages
  program = b"\x80\x02" + body + b"."
  if layout == "zip":
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr(f"{prefix}/data.pkl", program)
      for key, raw in storages.items():
        archive.writestr(f"{prefix}/data/{key}", raw)
    return path
  with open(path, "wb") as file:
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
      pickle.dump(part, file, 2)
    file.write(program)
    pickle.dump(list(storages), file, 2)
    for raw in storages.values():
      file.write(struct.pack("<q", len(raw) // 4) + raw)
  return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hand_made_file_is_read(tmp_path, layout):
  path = write(tmp_path / "good.pth", layout, tensor_opcodes(1, (3,)))
  np.testing.assert_array_equal(read_torch_file(path), [1, 2, 3])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "function, named",
    (
        (os.system, f"{os.system.__module__}.system"),
        (eval, "builtin"),
        (subprocess.run, "run"),
        (getattr, "getattr"),
    ),
    ids=("system", "eval", "run", "getattr"),
)
def test_hostile_names_are_refused_by_name(tmp_path, layout, function, named):
  witness = tmp_path / "executed"
  argument = f"open({str(witness)!r}, 'w')" if function is eval else f"touch {witness}"
  body = opcodes({"weight": Payload(function, argument)})
  path = write(tmp_path / "hostile.pth", layout, body)
  with pytest.raises(TorchFileError, match=f"refused to load .*{named}"):
    read_torch_file(path)
  assert not witness.exists()


def test_hostile_first_pickle_is_refused(tmp_path):
  path = tmp_path / "plain.pth"
  path.write_bytes(pickle.dumps(Payload(os.system, "true")))
  with pytest.raises(TorchFileError, match="refused to load"):
    read_torch_file(path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "numbers",
    (
        dict(offset=4),
        dict(offset=-1),
        dict(offset=2**70),
        dict(size=(5,)),
        dict(size=(2,), stride=(4,)),
        dict(size=(2,), stride=(-1,)),
        dict(size=(2, 2)),
        dict(size=(2**40, 2**40), stride=(2**40, 1)),
        dict(size=(-1,)),
        dict(size=("2",)),
        dict(numel=5),
        dict(numel=2**50),
        dict(numel=-1),
        dict(numel="4"),
        dict(key="1"),
        dict(key=7),
        dict(kind="NoSuchStorage"),
        dict(kind="DoubleStorage"),
    ),
    ids=str,
)
def test_tensors_outside_their_storage_are_refused(tmp_path, layout, numbers):
  path = write(tmp_path / "bad.pth", layout, tensor_opcodes(**numbers))
  with pytest.raises(TorchFileError, match="bad.pth"):
    read_torch_file(path)


def test_a_tensor_cannot_be_changed_after_the_check(tmp_path):
  # BUILD would set attributes of the tensor, or call ndarray.__setstate__ if it were an array.
  body = tensor_opcodes() + opcodes({"offset": 10**6}) + b"b"
  with pytest.raises(TorchFileError, match="change the state"):
    read_torch_file(write(tmp_path / "bad.pth", "zip", body))


def test_archive_members_are_never_files(tmp_path):
  secret = tmp_path / "secret"
  secret.write_bytes(bytes(16))
  for key in (f"../../{secret.name}", str(secret)):
    path = write(tmp_path / "bad.pth", "zip", tensor_opcodes(key=key))
    with pytest.raises(TorchFileError, match="no member"):
      read_torch_file(path)


def test_zip_bombs_and_foreign_archives_are_refused(tmp_path):
  path = tmp_path / "bomb.pth"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", b"\x80\x02" + tensor_opcodes() + b".")
    archive.writestr("archive/data/0", bytes(16))
  with pytest.raises(TorchFileError, match="compressed"):
    read_torch_file(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("readme.txt", "hello")
  with pytest.raises(TorchFileError, match="0 members named data.pkl"):
    read_torch_file(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/byteorder", "big")
    archive.writestr("archive/data.pkl", b"\x80\x02" + tensor_opcodes() + b".")
  with pytest.raises(TorchFileError, match="big-endian"):
    read_torch_file(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_containers_that_contain_themselves(tmp_path, layout):
  loop = []
  loop.append(loop)
  with pytest.raises(TorchFileError, match="contains itself"):
    read_torch_file(write(tmp_path / "loop.pth", layout, opcodes(loop), {}))
  deep = b"]" * 100_000 + b"a" * 99_999
  with pytest.raises(TorchFileError, match="nested too deeply|damaged"):
    read_torch_file(write(tmp_path / "deep.pth", layout, deep, {}))


def test_shared_containers_are_read_once(tmp_path):
  """Forty doublings of one list: 2^40 leaves if each reference were followed."""
  node = [1]
  for _ in range(40):
    node = [node, node]
  assert len(read_torch_file(write(tmp_path / "laughs.pth", "zip", opcodes(node), {}))) == 2


def doublings(depth=100):
  """The opcodes of a tuple that holds the one before it twice, `depth` times: 2^depth paths in some bytes."""
  steps = (b"h%ch%c\x86q%c0" % (level, level, level + 1) for level in range(depth))
  return b")q\x000" + b"".join(steps) + b"h%c" % depth


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "body, message",
    (
        (b"}(" + doublings() + b"K\x01u", "a key .a tuple, a tuple."),
        (b"}" + doublings() + b"K\x01s", "a key"),
        (b"(" + doublings() + b"K\x01d", "a key"),
        (b"\x8f(" + doublings() + b"\x90", "a key"),
        (b"(" + doublings() + b"\x91", "a key"),
        (b"ccollections\nOrderedDict\n((" + doublings() + b"K\x01\x86ltR", "a key"),
        (b"}" + opcodes(tuple(range(100))) + b"K\x01s", "a key"),
        (b"}" + opcodes(2**1000) + b"K\x01s", "a key"),
        (doublings() + b"Q", "unknown kind of reference"),
        (b"ctorch\ndevice\n" + doublings() + b"\x85R", "torch.device"),
        (b"ctorch\nSize\n" + opcodes(tuple(range(100))) + b"\x85R", "torch.Size"),
        (b"ctorch\ndevice\n" + opcodes(tuple(range(100))) + b"R", "a call with arguments"),
        (b"ctorch\ndevice\n" + opcodes([1]) + b"R", "a call with arguments"),
        (b"ctorch\ndevice\n)\x81", "NEWOBJ"),
        (b"\x8b" + struct.pack("<i", 4) + bytes(4), "LONG4"),
        (b"\x96" + struct.pack("<Q", 2**40), "BYTEARRAY8"),
        (b"\x8e" + struct.pack("<Q", 2**40), "declares 1099511627776 bytes"),
        (b"\x8d" + struct.pack("<Q", 2**40), "declares 1099511627776 bytes"),
        (b"\x95" + struct.pack("<Q", 2**40), "declares 1099511627776 bytes"),
    ),
)
def test_small_files_that_ask_for_much_work_are_refused(tmp_path, layout, body, message):
  with pytest.raises(TorchFileError, match=message) as error:
    read_torch_file(write(tmp_path / "bad.pth", layout, body, {}))
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize("layout", LAYOUTS)
def test_doubled_tuples_in_tensors_are_refused(tmp_path, layout):
  body = tensor_opcodes().replace(opcodes((2,)), doublings())
  with pytest.raises(TorchFileError, match="size .a tuple, a tuple."):
    read_torch_file(write(tmp_path / "bad.pth", layout, body))


def test_a_memo_index_takes_no_memory(tmp_path):
  path = write(tmp_path / "memo.pth", "zip", opcodes([1]) + b"r\xff\xff\xff\x7f", {})
  assert read_torch_file(path) == [1]


def test_keys_that_runs_have_are_read(tmp_path):
  run = {0: "a", "b": {1.5, None}, (1, "c"): frozenset([2]), b"d": True, 2**47: ()}
  assert read_torch_file(write(tmp_path / "run.pth", "zip", pickle.dumps(run, 4)[:-1], {})) == run


@pytest.mark.parametrize("size", ((10**9,), (10**5, 10**5), (2**40, 2**30)), ids=str)
def test_expanded_tensors_beyond_the_file_are_refused(tmp_path, size):
  path = write(tmp_path / "bad.pth", "zip", tensor_opcodes(size=size, stride=(0,) * len(size)))
  with pytest.raises(TorchFileError, match="declares more elements than are stored"):
    read_torch_file(path)


def test_expanded_tensors_are_counted_together(tmp_path):
  one = tensor_opcodes(size=(10**7,), stride=(0,))
  assert read_torch_file(write(tmp_path / "one.pth", "zip", one)).shape == (10**7,)
  with pytest.raises(TorchFileError, match="declares more elements than are stored"):
    read_torch_file(write(tmp_path / "two.pth", "zip", b"](" + one + one + b"e"))


def test_a_member_larger_than_the_file_is_refused(tmp_path):
  path = write(tmp_path / "bad.pth", "zip", tensor_opcodes())
  content = bytearray(path.read_bytes())
  at = content.rindex(b"PK\x01\x02")  # of archive/data/0 in the archive's directory
  content[at + 24 : at + 28] = struct.pack("<I", 2**30)
  path.write_bytes(content)
  with pytest.raises(TorchFileError, match="claims to be larger than the whole file"):
    read_torch_file(path)


def test_a_fifo_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / "fifo.pth")
  with pytest.raises(TorchFileError, match="not a regular file"):
    read_torch_file(tmp_path / "fifo.pth")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_files_are_errors_at_any_length(tmp_path, layout):
  whole = (FILES / f"run_{layout}.pth").read_bytes()
  path = tmp_path / "cut.pth"
  for length in range(1, len(whole) - 1, max(1, len(whole) // 50)):
    path.write_bytes(whole[:length])
    with pytest.raises(TorchFileError, match="cut.pth"):
      read_torch_file(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_bytes_never_crash(tmp_path, layout):
  whole = bytearray((FILES / f"run_{layout}.pth").read_bytes())
  random = np.random.default_rng(0)
  path = tmp_path / "damaged.pth"
  for _ in range(100):
    damaged = whole.copy()
    for position in random.integers(0, len(whole), 5):
      damaged[position] = random.integers(256)
    path.write_bytes(damaged)
    try:
      read_torch_file(path)
    except TorchFileError:
      pass

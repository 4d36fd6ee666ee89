"""A plain training script in PyTorch up to its first step, which benchmarks/startup.py starts and times.

    python benchmarks/startup_pytorch.py MODEL_PY BATCH SIDE CLASSES [--compile]

MODEL_PY is what `python -m bionets_jax.weights` writes for people who train on in PyTorch.
"""

import importlib.util
import sys

import torch
import torch.nn.functional as F


def main() -> None:
  path, batch, side, classes = sys.argv[1], *map(int, sys.argv[2:5])
  spec = importlib.util.spec_from_file_location("model", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["model"] = module  # where torch.compile looks for it
  spec.loader.exec_module(module)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  net = module.create().train().to(device, memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
  images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8).to(device)
  labels = torch.randint(0, classes, (batch,)).to(device)

  def loss():
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
      logits = net((images / 255).permute(0, 3, 1, 2))
    return F.cross_entropy(logits.float(), labels)

  if "--compile" in sys.argv:
    loss = torch.compile(loss, dynamic=False)
  value = loss()
  value.backward()
  optimizer.step()
  print(f"first step: loss {value.item():.3f}", flush=True)


if __name__ == "__main__":
  main()

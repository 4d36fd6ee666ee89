"""The tables of docs/performance.md: what each benchmark writes as JSON, in Markdown."""

from collections.abc import Callable, Mapping
from typing import Any

_SIDES = {"ours": "bionets_jax", "torch": "PyTorch", "compiled": "torch.compile"}


def _spread(ratio: Mapping[str, float] | None) -> str:
  """Median and quartiles."""
  return f"**{ratio['median']:.2f}** ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else ""


def _where(content: Mapping[str, Any]) -> str:
  """The machine of a file, and how often all was timed."""
  machine = content["machine"]
  text = f"{machine['devices']}, {machine['cores']} cores of {machine['processor']}, JAX {machine['jax']}"
  text += f", PyTorch {machine['torch']}" if "torch" in machine else ""
  rounds = content.get("rounds")
  rounds = len(rounds) if isinstance(rounds, list) else rounds  # a list holds what each measured
  return f"{text}; {rounds} rounds" if rounds else text


def table(rows: list[list[str]]) -> str:
  """Rows of text as a table of Markdown; the first is the head."""
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def networks(content: Mapping[str, Any]) -> str:
  rows = [["network", "side", "batch", "ms", "images/s", "of peak", "vs PyTorch", "vs torch.compile",
           "vs plain"]]
  for family in content["families"].values():
    for name, one in family["networks"].items():
      for side, found in one["sides"].items():
        rows.append([
            f"`{name}`", _SIDES[side], str(one["batch"]), f"{found['ms']:.0f}",
            f"{found['images per second']:,.0f}" if found["images per second"] > 20
            else f"{found['images per second']:.1f}",
            f"{100 * found['of peak']:.0f} %",
            *(_spread(found.get(word)) for word in ("vs torch", "vs compiled", "vs plain"))])
  return f"{_where(content)}\n\n{table(rows)}"


def units(content: Mapping[str, Any]) -> str:
  rows = [["unit", "shape", "forward vs PyTorch", "vs torch.compile", "vs plain", "with gradients vs PyTorch",
           "vs torch.compile", "vs plain"]]
  for name, shapes in content["units"].items():
    for shape, found in shapes.items():
      ratios = [_spread(found[mode]["ours"].get(word)) for mode in ("forward", "backward")
                for word in ("vs torch", "vs compiled", "vs plain")]
      rows.append([name, shape, *ratios])
  return f"{_where(content)}\n\n{table(rows)}"


def mbconv(content: Mapping[str, Any]) -> str:
  rows = [["block", "batch", "1x1", "forward vs PyTorch", "with gradients vs PyTorch", "vs torch.compile",
           "vs dense", "PyTorch's vs its dense"]]
  for shape, found in content["shapes"].items():
    for kind, word in (("plain", "dense"), ("k", "grouped")):
      ours, theirs = (found["backward"][f"{kind} {side}"] for side in ("ours", "torch"))
      rows.append([
          shape, str(found["batch"]), word, _spread(found["forward"][f"{kind} ours"]["vs torch"]),
          _spread(ours["vs torch"]), _spread(ours.get("vs compiled")), _spread(ours.get("vs plain")), _spread(theirs.get("vs plain"))])
  return f"{_where(content)}\n\n{table(rows)}"


def detection(content: Mapping[str, Any]) -> str:
  rows = [["detector", "batch", "pixels", "ms", "images/s", "torchvision's ms", "vs torchvision"]]
  for name, one in content["detectors"].items():
    rows.append([
        f"`{name}`", str(content["batch"]), "x".join(map(str, content["size"])), f"{one['ours']['ms']:.0f}",
        f"{one['ours']['images per second']:.2f}", f"{one['torchvision']['ms']:.0f}", _spread(one["vs torchvision"])])
  return f"{_where(content)}\n\n{table(rows)}"


def memory(content: Mapping[str, Any]) -> str:
  rows = [["network", "batch", "MiB", "vs plain", "MiB with remat", "vs without", "PyTorch's MiB",
           "vs plain"]]
  for name, one in content["networks"].items():
    plain = next(other for other in content["networks"].values() if other["family"] == one["family"])
    rows.append([
        f"`{name}`", str(one["batch"]), f"{one['ours'] / 2**20:,.0f}", f"{one['ours'] / plain['ours']:.2f}",
        f"{one['remat'] / 2**20:,.0f}", f"{one['remat'] / one['ours']:.2f}",
        f"{one['torch'] / 2**20:,.0f}", f"{one['torch'] / plain['torch']:.2f}"])
  return f"{_where(content)}\n\n{table(rows)}"


def startup(content: Mapping[str, Any]) -> str:
  rows = [["start", "seconds to the first step", "ratio", "of it"]]
  for case, one in content["cases"].items():
    ratio = next(value for key, value in one.items() if key.startswith("vs "))
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in one.get("phases", {}).items())
    rows.append([case, f"{one['seconds']:.1f}", _spread(ratio), phases])
  return f"{_where(content)}; `{content['model']}`, batch {content['batch']}\n\n{table(rows)}"


def inputs(content: Mapping[str, Any]) -> str:
  files = content["files"]
  text = (f"{_where(content)}; {files['number']} JPEGs ({files['images']}) of {files['pixels']} pixels and "
          f"{files['mean KB']} KB")
  parts = []
  if "rate" in content:
    parts.append([["one core", "images/s", "time vs ours"]] + [
        [name, f"{found['images per second']:,.0f}", _spread(found["time vs ours"])]
        for name, found in content["rate"].items()])
  if "workers" in content:
    parts.append([["worker processes", "first batch after s", "images/s", "per core"]] + [
        [number, f"{found['first batch seconds']:.1f}", f"{found['images per second']:,.0f}",
         f"{found['per core']:,.0f}"] for number, found in content["workers"].items()])
  if "stalls" in content:
    parts.append([["batches are taken at", "share of time waited", "least", "most"]] + [
        [f"{part} of {content['stalls']['images per second']:,.0f} images/s",
         *(f"{100 * found[key]:.1f} %" for key in ("waited", "least", "most"))]
        for part, found in content["stalls"]["taken at"].items()])
  return "\n\n".join([text, *map(table, parts)])


KINDS: dict[str, Callable[[Any], str]] = {
    "units": units, "mbconv": mbconv, "networks": networks, "detection": detection, "memory": memory, "startup": startup,
    "input": inputs}

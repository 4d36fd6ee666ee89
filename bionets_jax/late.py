"""Packages whose public names are imported on first use."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def late_attributes(package: str, modules: Mapping[str, str], names: list[str]) -> Callable[[str], Any]:
  """The `__getattr__` of a package (PEP 562).

  Args:
    package: its name.
    modules: public name -> the module that holds it, or that it is: `package.name`.
    names: of all that is public, for the message of an AttributeError.
  """
  def find(name: str) -> Any:
    if name not in modules:
      raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(names)}")
    value = importlib.import_module(modules[name])
    if modules[name] != f"{package}.{name}":
      value = getattr(value, name)
    setattr(sys.modules[package], name, value)  # it is asked once
    return value

  return find

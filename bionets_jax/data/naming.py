"""What an error says when a name is not known."""

import difflib


def unknown(kind, name, known):
  """Returns the message for an unknown `name`: the nearest known names, then all of them."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
  listed = ", ".join(known) if known else "none"
  return f"Unknown {kind} {name!r}.{hint} Known: {listed}."

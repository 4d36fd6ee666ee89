"""What an error says when a name is not known."""

import difflib


def unknown(kind, name, known):
  """Returns the message for an unknown `name`: the nearest known names, then all of them."""
  known = sorted(known)
  listed = ", ".join(known) if known else "none"
  return f"Unknown {kind} {name!r}.{nearest(name, known)} Known: {listed}."


def nearest(name, known):
  """Returns ' Did you mean ...?', or '' where nothing known comes near."""
  near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
  return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""

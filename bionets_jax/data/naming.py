"""What an error says when a name is not known."""

import difflib


def unknown(kind, name, known, most=None):
  """Returns the message for an unknown `name`: the nearest known names, then all of them, or the first `most`."""
  known = sorted(known)
  listed = ", ".join(known[:most]) or "none"
  if len(known[:most]) < len(known):
    listed += f" and {len(known) - most:,} more"
  return f"Unknown {kind} {name!r}.{nearest(name, known)} Known: {listed}."


def nearest(name, known):
  """Returns ' Did you mean ...?', or '' where nothing known comes near."""
  near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
  return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def unknown_split(name, split, known):
  """Returns the message for a split, in TFDS's syntax, that the set `name` does not have."""
  return (
      unknown(f"split of {name}", split, known)
      + " Slices are written as in TFDS: 'train[:90%]', 'train[1000:]', 'train+test'."
  )

"""The documentation site: `make docs` builds it into docs/_build/html, without a network."""

import pathlib
import re
import shutil
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import docstrings  # noqa: E402
import mathml  # noqa: E402

import bionets_jax  # noqa: E402

project = "bionets_jax"
author = "the authors of bionets_jax"
copyright = "the authors of bionets_jax, Apache-2.0"
release = version = bionets_jax.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"bionets_jax {release}"
html_show_sphinx = False

# Pages are Markdown that GitHub shows as well: dollars around math, links to headings by their text.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
# What is shown of the notebooks is what is committed.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_attr_annotations = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
default_role = "code"


def _anchor(match):
  """A link of Jupyter's to a heading, [..](#1.-A-unit), as it is called here."""
  return f"](#{re.sub(r'[^-a-z0-9_]', '', match[1].lower())})"


# Sphinx reads below its own folder only.
_COPIED = HERE / "copied"
shutil.rmtree(_COPIED, ignore_errors=True)
_COPIED.mkdir()
for path in (*ROOT.glob("[!R]*.md"), *(ROOT / "examples" / "notebooks").glob("*.ipynb")):
  text = path.read_text(encoding="utf-8")
  if path.suffix == ".ipynb":
    text = re.sub(r"\]\(#([^)\s]+)\)", _anchor, text)
    text = re.sub(r"\[[^]]*\]\(\.\./([^)\s]+)\)", r"`examples/\1`", text)
  (_COPIED / path.name).write_text(text, encoding="utf-8")


def setup(app):
  mathml.setup(app)
  docstrings.setup(app)

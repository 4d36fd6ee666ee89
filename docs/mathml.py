"""Equations as MathML, by docutils' own converter: browsers show it, and no page loads a script for it."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

# Wide equations scroll by themselves, not the page.
_STYLE = "overflow-x: auto; overflow-y: hidden; padding: 0.4em 0"


def _inline(translator, node):
  translator.body.append(tex2mathml(node.astext(), as_block=False))
  raise nodes.SkipNode


def _block(translator, node):
  translator.body.append(f'<div style="{_STYLE}">{tex2mathml(node.astext(), as_block=True)}</div>\n')
  raise nodes.SkipNode


def setup(app):
  app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
  app.config.html_math_renderer = "mathml"

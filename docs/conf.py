"""How Sphinx builds these pages: `make docs`. Nothing is fetched, neither while building nor while reading."""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

sys.path.insert(0, str(Path(__file__).parent))
from draw_results import RESULTS, fill_pictures
from generate_config import fill_page, source_files
from generate_models import fill_models

from nlpstack import __version__

project = "nlpstack"
author = "the nlpstack authors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"nlpstack {__version__}"
html_math_renderer = "mathml"  # MathJax would come from the network; browsers read MathML by themselves
html_show_sphinx = False
html_copy_source = False


def _mathml(node: nodes.Element, display: str) -> str:
    """A formula as MathML; one that cannot be read is a warning, which fails the build."""
    latex = node.astext()
    try:
        found = convert(latex, display=display)
    except Exception as error:  # latex2mathml has an exception of its own for every mistake
        found = f"{type(error).__name__} {error}"
    # A command that it does not know comes out as it went in. A root's sign is drawn only with a font for mathematics,
    # which many machines lack, and a formula without its root would be wrong: write \surd(...).
    if not found.startswith("<math") or "\\" in found or "<msqrt" in found or "<mroot" in found:
        getLogger(__name__).warning("not readable as a formula everywhere: %s (%s)", latex, found, location=node)
    return found


def _inline(self: object, node: nodes.Element) -> None:
    self.body.append(_mathml(node, "inline"))  # type: ignore[attr-defined]
    raise nodes.SkipNode


def _block(self: object, node: nodes.Element) -> None:
    self.body.append(f'<div class="formula">{_mathml(node, "block")}</div>\n')  # type: ignore[attr-defined]
    raise nodes.SkipNode


def _generate(app: Sphinx, name: str, source: list[str]) -> None:
    """Fill in what a page takes from the code and the results, and build the page again when these change."""
    filled = fill_models(fill_pictures(fill_page(source[0])))
    if filled != source[0]:
        source[0] = filled
        for path in (*source_files(), RESULTS):
            app.env.note_dependency(str(path))


def setup(app: Sphinx) -> None:
    """Register the formulas and the generated tables."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("source-read", _generate)

"""The pictures of examples: SVG without a background, which the style sheet turns for dark themes."""

import matplotlib
from sphinx_gallery.scrapers import matplotlib_scraper

INK, POINT, PALE = "#1c2a38", "#c8501e", "#7d8b99"


def scraper(block, block_vars, gallery_conf, **keywords):
    """Keep the figures of a block."""
    return matplotlib_scraper(
        block, block_vars, gallery_conf, **{**keywords, "format": "svg", "transparent": True}
    )


def style(gallery_conf, name):
    """Draw alike in all examples, and the same bytes each time."""
    matplotlib.rcParams.update(
        {
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.prop_cycle": matplotlib.cycler(color=[INK, POINT, PALE, "#2f7d5b"]),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.figsize": (7.2, 3.6),
            "legend.frameon": False,
            "lines.linewidth": 2,
            "svg.hashsalt": "xent_rs",
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )

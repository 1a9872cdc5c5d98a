# SPDX-License-Identifier: GPL-2.0-or-later
"""Self-contained pages: one frame (templates/frame.html), and pictures in them as SVG.

Jinja2 escapes what goes into HTML, and the frame's content security policy lets a page load nothing and run nothing
(the explorer's may run its own script, by hash).

Invariant: the same content gives the same bytes.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from rmaplab.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH: Final = 9.0  # inches of a picture
_COLOURS: Final = ("#0b66c3", "#c2560c", "#6b2fa0", "#0a7d33", "#a3193f", "#555555")
_MARKS: Final = ("o", "s", "^", "D", "v", "P")


def render(template: str, escape: bool = True, **content: Any) -> str:
    """The page that `template` makes of `content`."""
    environment = Environment(
        loader=PackageLoader("rmaplab"), autoescape=escape, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    environment.filters["ratio"] = lambda value: "" if value is None else f"{value:.2f}"
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["truncate_words"] = lambda text, length: " ".join(word[:length] for word in text.split())
    return environment.get_template(template).render(version=__version__, **content)


def number(value: float) -> str:
    """A figure as text: whole numbers whole, others with three digits that say something."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def picture(draw: Callable[[Figure], None]) -> str:
    """What `draw` draws, as a data: URL."""
    # matplotlib takes a second to import, and most of the commands draw nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "rmaplab", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(layout="constrained")
        draw(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + b64encode(drawn.getvalue().encode()).decode()


def looks(design: str, designs: Sequence[str]) -> dict[str, Any]:
    """A design's colour and mark; its name is its label."""
    nth = designs.index(design)
    return {"color": colour(nth), "marker": _MARKS[nth % len(_MARKS)], "markersize": 5, "label": design}


def colour(nth: int) -> str:
    return _COLOURS[nth % len(_COLOURS)]


def short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."

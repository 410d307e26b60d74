"""Figures as files, drawn by matplotlib."""

from __future__ import annotations

from emma.base.extras import need

__all__ = ["set_up_drawing"]


def set_up_drawing() -> None:
    """Makes matplotlib draw without a display, and write the same drawing as the same bytes.

    Raises:
        UserError: matplotlib is not installed.
    """
    need("corpus", "drawing figures", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    # Without this, SVG files differ from one drawing to the next.
    matplotlib.rcParams["svg.hashsalt"] = "emma"

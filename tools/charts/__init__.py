"""Charts as SVG: axes, marks, and the figures made of them."""

"""Drawings of the page, as SVG that is part of it. Colours are those of the style sheet."""

# Colours of the style sheet: class s0 to s7.
COLOURS = 8

"""Write an output: as a file for another program, or as a picture.

A file takes its place when it is complete: nobody ever reads half of one.
"""

from __future__ import annotations

from hepdask.outputs.files import OUTPUT_SUFFIXES, check_output_path
from hepdask.outputs.formats import write_output
from hepdask.outputs.histograms import list_histograms
from hepdask.outputs.plots import check_plot_path, draw_histograms, write_plot

__all__ = [
    "OUTPUT_SUFFIXES",
    "check_output_path",
    "check_plot_path",
    "draw_histograms",
    "list_histograms",
    "write_output",
    "write_plot",
]

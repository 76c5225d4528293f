"""The pages of a run: report.html, scan by scan, and group.html, all scans together.

Each is one file that reads without network. Pictures and numbers need no scripts; sorting, filtering and the
slice viewer do.
"""

from __future__ import annotations

from hz_runtime.report.drawing import figure_data
from hz_runtime.report.figure import Figure
from hz_runtime.report.group import render_group
from hz_runtime.report.pages import figures_of, page_files, remove_pages, write_pages
from hz_runtime.report.scans import render_report

__all__ = [
    "Figure",
    "figure_data",
    "figures_of",
    "page_files",
    "remove_pages",
    "render_group",
    "render_report",
    "write_pages",
]

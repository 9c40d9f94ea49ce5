"""A load generator for servers with many adapters: workload, load loops and report."""

from loramux.bench.load import Record, closed_loop, open_loop
from loramux.bench.report import Report, summarize
from loramux.bench.workload import Lengths, Planned, parse_lengths, plan

__all__ = [
    "Lengths",
    "Planned",
    "Record",
    "Report",
    "closed_loop",
    "open_loop",
    "parse_lengths",
    "plan",
    "summarize",
]

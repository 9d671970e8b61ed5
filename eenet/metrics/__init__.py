"""Metrics of many exits at once: per-sample statistics, kept as synchronised records, and their summaries."""

from eenet.metrics.records import Records
from eenet.metrics.statistics import NUM_BINS, STATISTICS, sample_statistics, summarise

__all__ = ["NUM_BINS", "STATISTICS", "Records", "sample_statistics", "summarise"]

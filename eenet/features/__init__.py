"""Features once: what the exits of a frozen backbone read, computed one time per sample and kept."""

from eenet.features.extraction import Source, extract_rows
from eenet.features.key import feature_key
from eenet.features.layout import DTYPES, Layout
from eenet.features.memory import memory_table
from eenet.features.options import FeatureOptions, Features, feature_options
from eenet.features.store import FeatureStore, disk_table
from eenet.features.table import FeatureTable

__all__ = [
    "DTYPES",
    "FeatureOptions",
    "FeatureStore",
    "FeatureTable",
    "Features",
    "Layout",
    "Source",
    "disk_table",
    "extract_rows",
    "feature_key",
    "feature_options",
    "memory_table",
]

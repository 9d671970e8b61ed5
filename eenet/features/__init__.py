"""Features once: what the exits of a frozen backbone read, computed one time per sample and kept."""

from eenet.features.extraction import Source
from eenet.features.key import feature_key
from eenet.features.layout import Layout
from eenet.features.memory import memory_table
from eenet.features.options import FeatureOptions, Features, feature_options
from eenet.features.store import FeatureStore, disk_table
from eenet.features.table import FeatureTable

__all__ = [
    "FeatureOptions",
    "FeatureStore",
    "FeatureTable",
    "Features",
    "Layout",
    "Source",
    "disk_table",
    "feature_key",
    "feature_options",
    "memory_table",
]

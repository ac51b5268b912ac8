"""Metrics that measure more than those of mmdet and mmseg, under the same names."""

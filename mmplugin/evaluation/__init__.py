"""Metrics that mmdet and mmseg do not have."""

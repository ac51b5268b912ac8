"""Speed and memory of backbones, detectors and segmentors."""

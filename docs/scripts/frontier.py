"""Plot docs/images/frontier.png from docs/data/benchmark.json: published top-1 over measured latency.

Run ``python docs/scripts/frontier.py``.
"""

from markers import ROOT

from mmplugin.benchmark.plot import plot
from mmplugin.benchmark.results import Results

DATA = ROOT / 'docs' / 'data' / 'benchmark.json'
IMAGE = ROOT / 'docs' / 'images' / 'frontier.png'

if __name__ == '__main__':
    plot(Results.from_json(DATA), IMAGE, 'top-1', mode='fused')

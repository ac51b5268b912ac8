"""What the tools share: from a config to a runner, trials on built-in data, measures, pictures, report, benchmarks."""

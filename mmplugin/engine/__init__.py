"""Training, testing and data checks: command lines, config to runner, reports."""

"""From a trained config to a file that runs without PyTorch, checked against PyTorch.

Nothing here is imported unless a command asks for it; the packages of the runtimes are imported where they are used.
"""

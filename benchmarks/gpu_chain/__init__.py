"""The whole chain on a GPU against the published script's way in PyTorch, in one run; see `__main__`."""

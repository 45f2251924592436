"""Training side: the published architecture in PyTorch, its data, losses and two-stage trainer."""

"""Training data: media cache, real-video sampler, synthetic scenes with exact ground truth, batch mixer."""

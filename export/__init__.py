"""From a checkpoint to a bundle of ONNX stages."""

"""Calibration and quantisation of a bundle's stages."""

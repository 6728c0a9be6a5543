"""Inversion: the whitened style space and the projection of images into it."""

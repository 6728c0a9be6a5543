"""Training: auxiliary networks, GAN, controllers; plain PyTorch loops."""

"""Losses: adversarial, contrastive, triplet, reconstruction."""

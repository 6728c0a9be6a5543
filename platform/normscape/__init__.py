"""normscape: conditional unsupervised anomaly detection, learnt from normal images."""

__version__ = "0.1.0"

"""Ray: the cluster, training on several workers, projection by a pool of actors, sweeps."""

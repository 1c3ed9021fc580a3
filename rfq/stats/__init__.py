"""Statistics of activations and weights: small records that merge exactly."""

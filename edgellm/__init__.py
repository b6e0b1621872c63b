"""Language and speech models on the device you have."""

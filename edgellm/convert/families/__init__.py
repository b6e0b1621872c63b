"""One file for each family of checkpoints: which keys and tensors of a GGUF file its parts become."""

"""How good a model is: perplexity, divergence from another model, multiple choice; and what fits into memory."""

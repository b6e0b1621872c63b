"""How the next token is chosen: settings, samplers in llama.cpp's order, and log-probabilities."""

from __future__ import annotations

from edgellm.sampling.logprobs import log_softmax, logprob_of, top_logprobs
from edgellm.sampling.sampler import Sampler
from edgellm.sampling.settings import NUMBERS, Sampling, Setting

__all__ = ["NUMBERS", "Sampler", "Sampling", "Setting", "log_softmax", "logprob_of", "top_logprobs"]

"""Settings: defaults, validation messages, files' recommendations, text typed by users."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

from edgellm.errors import InvalidSettingError
from edgellm.sampling import NUMBERS, Sampling


def test_defaults_are_llama_cpps() -> None:
    assert dataclasses.asdict(Sampling()) == {
        "temperature": 0.8,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "min_keep": 0,
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "repeat_penalty": 1.0,
        "repeat_last_n": 64,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ("\n", ":", '"', "*"),
        "logit_bias": {},
        "ignore_eos": False,
        "seed": None,
        "samplers": ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_p": 1.5}, "top_p = 1.5: expected a number from 0 to 1"),
        ({"top_p": "0.9"}, "top_p = '0.9': expected a number"),
        ({"temperature": math.nan}, "temperature = nan: expected a number from -100 to 100"),
        ({"min_p": True}, "min_p = True"),
        ({"top_k": 2.5}, "top_k = 2.5: expected a whole number from -1 to 2147483647"),
        ({"top_k": None}, "top_k = None"),
        ({"mirostat": 3}, "mirostat = 3: expected a whole number from 0 to 2"),
        ({"repeat_penalty": 0}, "repeat_penalty = 0"),
        ({"seed": -2}, "seed = -2: expected a whole number from -1 to 18446744073709551615"),
        ({"seed": 10**60}, "seed = a huge number: expected"),
        ({"temperature": 10**5000}, "temperature = a huge number: expected"),
        ({"ignore_eos": 1}, "ignore_eos = 1: expected true or false"),
        ({"samplers": ("top_k", "magic")}, "'magic' is unknown, expected some of penalties, dry"),
        ({"samplers": 5}, "samplers = 5: expected a list"),
        ({"dry_sequence_breakers": "\n"}, "expected a list of strings"),
        ({"dry_sequence_breakers": ("a", "")}, "'' is not a string of one character or more"),
        ({"logit_bias": {1: True}}, r"logit_bias\[1\] = True: expected a number from -1e\+30 to 1e\+30, or false"),
        ({"logit_bias": {1: math.nan}}, "or false for never"),
        ({"logit_bias": {1: math.inf}}, "or false for never"),
        ({"logit_bias": {1.5: 1}}, "1.5 is neither a token id nor a text"),
        ({"logit_bias": {"": 1}}, "neither a token id nor a text"),
        ({"logit_bias": [1]}, "expected a mapping"),
    ],
)
def test_bad_values_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message) as caught:
        Sampling(**change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", NUMBERS)
def test_both_ends_of_every_range(name: str) -> None:
    setting = NUMBERS[name]
    for inside in (setting.low, setting.high):
        value = getattr(Sampling(**{name: setting.kind(inside)}), name)
        assert type(value) is setting.kind and value == inside
    for outside in (setting.low - 1, setting.high * 2 + 1):
        with pytest.raises(InvalidSettingError, match=f"^{name} = "):
            Sampling(**{name: setting.kind(outside)})


def test_values_become_plain_python() -> None:
    sampling = Sampling(top_k=np.int64(5), temperature=1, min_keep=3.0, logit_bias={np.int32(4): False})  # type: ignore[arg-type]
    assert (type(sampling.top_k), type(sampling.temperature), type(sampling.min_keep)) == (int, float, int)
    assert sampling.logit_bias == {4: -math.inf}


def test_orders_of_samplers() -> None:
    assert Sampling(samplers="top-k;nucleus;temp").samplers == ("top_k", "top_p", "temperature")  # type: ignore[arg-type]
    assert Sampling(samplers="edskypmxt").samplers == Sampling().samplers  # type: ignore[arg-type]
    assert Sampling(samplers="kt").samplers == ("top_k", "temperature")  # type: ignore[arg-type]
    assert Sampling(samplers=["typical_p"]).samplers == ("typ_p",)  # type: ignore[arg-type]
    assert Sampling(samplers=()).samplers == ()


def test_frozen_comparable_copyable() -> None:
    sampling = Sampling(logit_bias={1: 2.0, "x": False})
    assert pickle.loads(pickle.dumps(sampling)) == copy.deepcopy(sampling) == sampling
    assert hash(sampling) == hash(dataclasses.replace(sampling))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.top_k = 1  # type: ignore[misc]


def test_what_a_file_recommends() -> None:
    metadata = {
        "general.sampling.temp": float(np.float32(0.6)),
        "general.sampling.top_p": np.float32(0.9),
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.05,
        "general.sampling.penalty_last_n": 256,
        "general.sampling.sequence": "top_k;top_p;temperature",
        "general.name": "x",
    }
    found = Sampling.from_metadata(metadata)
    assert (found.temperature, found.top_p, found.top_k) == (0.6, 0.9, 20)
    assert (found.repeat_penalty, found.repeat_last_n) == (1.05, 256)
    assert found.samplers == ("top_k", "top_p", "temperature")
    assert Sampling.from_metadata({}) == Sampling()
    with pytest.raises(
        InvalidSettingError, match=r"the model file recommends top_p = 7\.0: expected a number from 0 to 1"
    ):
        Sampling.from_metadata({"general.sampling.top_p": 7.0})


def test_text_typed_by_a_user() -> None:
    parse = Sampling.parse
    assert parse("temperature", " 0.5 ") == 0.5 and parse("top_k", "7") == 7
    assert parse("seed", "none") is None and parse("seed", "9") == 9
    assert parse("ignore_eos", "On") is True and parse("ignore_eos", "no") is False
    assert parse("samplers", "top_k;temp") == ("top_k", "temperature")
    for name, text in (("top_p", "2"), ("top_k", "many"), ("top_k", "1.5"), ("ignore_eos", "perhaps"), ("tfs_z", "1")):
        with pytest.raises(InvalidSettingError, match=name):
            parse(name, text)


def test_importing_sampling_is_light() -> None:
    program = (
        "import sys, edgellm.sampling; print([m for m in ('numba', 'jinja2', 'regex', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

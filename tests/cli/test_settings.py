"""One set of names for settings: flags, /set, saved chats."""

from __future__ import annotations

import dataclasses

import click
import pytest
from fake_llm import FakeLLM
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.cli.settings import GenerationSettings, escape, parse_bias, setting_names, split_words, unescape
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.sampling import NUMBERS, Sampling

PLAIN = GenerationSettings(Sampling())


def test_every_field_of_sampling_is_a_setting_and_a_flag() -> None:
    from edgellm.cli.generate import generate_command

    flags = {name for option in generate_command.params for name in option.opts}
    for field in dataclasses.fields(Sampling):
        assert f"--{field.name.replace('_', '-')}" in flags
        assert field.name in setting_names()


def test_every_setting_can_be_changed_as_typed() -> None:
    typed = {
        **dict.fromkeys(NUMBERS, "1"),
        "ignore_eos": "true",
        "samplers": "top_k;temperature",
        "dry_sequence_breakers": r'"\n" ";"',
        "logit_bias": "15=-5.5 hello=false",
        "max_tokens": "12",
        "stop": r"'User:' \n\n",
    }
    assert set(typed) == set(setting_names())
    for name, text in typed.items():
        changed = PLAIN.changed(name, text)
        assert PLAIN.changed(f"--{name.replace('_', '-')}", text) == changed
        assert GenerationSettings(Sampling()).changed(name, changed.shown()[name]) == changed
    assert PLAIN.changed("stop", typed["stop"]).stop == ("User:", "\n\n")
    assert PLAIN.changed("dry_sequence_breakers", typed["dry_sequence_breakers"]).sampling.dry_sequence_breakers == (
        "\n",
        ";",
    )
    bias = PLAIN.changed("logit_bias", typed["logit_bias"]).sampling.logit_bias
    assert bias == {15: -5.5, "hello": float("-inf")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "hot"),
        ("top_p", "2"),
        ("top_k", "1.5"),
        ("max_tokens", "-3"),
        ("max_tokens", "many"),
        ("ignore_eos", "perhaps"),
        ("samplers", "nonsense"),
        ("logit_bias", "5"),
        ("logit_bias", "=5"),
        ("logit_bias", "5=high"),
        ("logit_bias", "5=nan"),
        ("stop", "'open"),
        ("stop", "''"),
        ("colour", "blue"),
        ("", ""),
    ],
)
def test_nonsense_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidSettingError):
        PLAIN.changed(name, text)


@given(st.text())
def test_escaping_is_undone(text: str) -> None:
    assert unescape(escape(text)) == text


@given(st.lists(st.text(min_size=1)))
def test_stop_strings_as_shown_mean_the_same(stops: list[str]) -> None:
    changed = dataclasses.replace(PLAIN, stop=tuple(stops))
    shown = changed.shown()["stop"]
    if stops != ["none"]:
        assert PLAIN.changed("stop", shown) == changed


@settings(deadline=None)
@given(st.sampled_from(setting_names()), st.text(max_size=20))
def test_any_text_is_a_value_or_a_clean_error(name: str, text: str) -> None:
    try:
        changed = PLAIN.changed(name, text)
    except EdgeLLMError:
        return
    assert isinstance(changed.shown()[name], str)


def test_words() -> None:
    assert split_words(r"""a 'b c' "d'e" \n #f""") == ["a", "b c", "d'e", r"\n", "#f"]


def test_bias_may_hold_an_equals_sign() -> None:
    assert parse_bias("a=b=3") == ("a=b", 3.0)
    assert parse_bias("7=FALSE") == (7, False)


def flags_reach_the_model(run, *flags: str) -> dict:
    model = FakeLLM("x")
    result = run("generate", "fake", "-p", "hi", *flags, model=model)
    assert result.exit_code == 0, result.output
    return model.calls[0]


def test_flags_reach_the_model(run) -> None:
    call = flags_reach_the_model(
        run,
        *["--temperature", "0", "--top-k", "5", "--seed", "7", "--ignore-eos", "--samplers", "top_k;temperature"],
        *["--logit-bias", "5=-1", "--logit-bias", "word=false", "--dry-sequence-breakers", r"\n", "--max-tokens", "9"],
        *["--stop", r"\n\n", "--stop", "User:"],
    )
    sampling = call["sampling"]
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.ignore_eos) == (0.0, 5, 7, True)
    assert sampling.samplers == ("top_k", "temperature")
    assert sampling.logit_bias == {5: -1.0, "word": float("-inf")}
    assert sampling.dry_sequence_breakers == ("\n",)
    assert call["max_tokens"] == 9
    assert call["stop"] == ("\n\n", "User:")


def test_without_flags_the_models_own_settings_hold(run) -> None:
    call = flags_reach_the_model(run)
    assert call["sampling"] == FakeLLM().sampling
    assert call["max_tokens"] is None
    assert flags_reach_the_model(run, "--seed", "none")["sampling"].seed is None
    assert flags_reach_the_model(run, "--no-ignore-eos")["sampling"].ignore_eos is False


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "hot"],
        ["--top-p", "2"],
        ["--logit-bias", "x"],
        ["--max-tokens", "-1"],
        ["--samplers", "zzz"],
        ["--context", "0"],
        ["--threads", "0"],
        ["--backend", "gpu"],
        ["--cache-type", "q3"],
        ["--no-such-flag"],
    ],
)
def test_wrong_flags_are_usage_errors(run, flags: list[str]) -> None:
    result = run("generate", "fake", "-p", "hi", *flags, model=FakeLLM())
    assert result.exit_code == click.UsageError.exit_code
    assert "Traceback" not in result.output


def test_model_flags_reach_loading(run) -> None:
    flags = ["--context", "99", "--threads", "3", "--cache-type", "q8_0", "--backend", "reference", "--offline"]
    result = run("generate", "fake", "-p", "hi", *flags, model=FakeLLM("x"))
    [options] = result.loaded
    assert (options.model, options.context, options.threads) == ("fake", 99, 3)
    assert (options.cache_type, options.backend, options.offline) == ("q8_0", "reference", True)

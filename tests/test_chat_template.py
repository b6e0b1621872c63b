"""Chat templates: as transformers renders them, from files of every kind, and no harm from hostile ones."""

# ruff: noqa: E501 (templates)

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import pytest
from hostile_templates import ESCAPES, GREEDY, outcome
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgellm.chat_fallbacks import TEMPLATES, nearest
from edgellm.chat_template import ChatTemplate, templates_of
from edgellm.errors import TemplateError

USER = {"role": "user", "content": "Hello <|im_end|> {{ 7 * 7 }} {% if %}"}
CHAT = [
    {"role": "system", "content": "  Be brief.\n"},
    USER,
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Wie geht's? 你好 \U0001f600"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'It\'s <b>"weather"</b> & more: é',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def as_transformers_does(source: str, messages: object, tools: object = None, **variables: object) -> str:
    """The environment that transformers' documentation describes, without any of our guards."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    given = {"bos_token": "<s>", "eos_token": "</s>", "documents": None, "add_generation_prompt": True, **variables}
    return environment.from_string(source).render(messages=messages, tools=tools, **given)


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, "<s>", "</s>")


# Shapes that templates of well-known families have, written for these tests.
SYSTEM_MERGED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}<image>{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}
"""

TOOL_LIST = """
{%- set date_string = date_string if date_string is defined else strftime_now("%d %b %Y") %}
{%- if tools is defined and tools %}
    {{- "<system>\n# Tools\n" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n" ~ (tools | tojson(indent=4)) ~ "\n" ~ tools[0].function | items | list | length }}
    {%- for name, value in tools[0].function.parameters.properties.items() %}
        {{- "// " + name + ": " + value.type + ("" if name in tools[0].function.parameters.required else "?") + ",\n" }}
    {%- endfor %}
{%- endif %}
{%- macro call(tool_call) -%}
    <call>{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson(separators=(',', ':')) }}}</call>
{%- endmacro -%}
{%- set ns = namespace(multi_step=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and not (message.content.startswith('<response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content | default('', true) %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
        {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<user>' }}{% endif %}
        {{- '<response>\n' ~ content ~ '\n</response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<end>\n' }}{%- endif %}
        {%- continue %}
    {%- endif %}
    {{- '<' + message.role + '>\n' }}
    {%- if reasoning and loop.index0 > ns.last %}{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}{%- endif %}
    {{- content }}
    {%- for tool_call in message.tool_calls or [] %}{{- call(tool_call.function) }}{%- endfor %}
    {{- '<end>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""

BRACKETS = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'system' %}{{ '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' }}{% elif message['role'] == 'assistant' %}{{ ' '  + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"""

TOOL_CHAT = [
    {"role": "user", "content": "Weather in Paris?"},
    {
        "role": "assistant",
        "content": "<think>\nLook it up.\n</think>\n\nOne moment.",
        "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Paris", "n": 1.5, "b": True, "x": None}}}
        ],
    },
    {"role": "tool", "content": "{'t': 20}"},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": None, "reasoning_content": "so", "tool_calls": []},
    {"role": "user", "content": "Thanks"},
]


@pytest.mark.parametrize("source", [SYSTEM_MERGED, TOOL_LIST, BRACKETS], ids=["merged", "tools", "brackets"])
@pytest.mark.parametrize("chat", [CHAT, CHAT[1:2], TOOL_CHAT], ids=["chat", "one", "calls"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("prompt", [True, False], ids=["open", "closed"])
def test_renders_as_transformers_does(source: str, chat: Any, tools: Any, prompt: bool) -> None:
    if chat is TOOL_CHAT and source is not TOOL_LIST:
        with pytest.raises(TemplateError, match=r"line \d+|must alternate"):
            template(source).render(chat, prompt, tools)
        return
    for variables in ({}, {"enable_thinking": False, "date_string": "today"}):
        expected = as_transformers_does(source, chat, tools, add_generation_prompt=prompt, **variables)
        assert template(source).render(chat, prompt, tools, variables) == expected


# Everything an expression may do that real templates do, and more.
EXPRESSIONS = """
'a' ~ 1 ~ none ~ true ~ [1, 'x'] ~ {'a': (1,)} | 1 + 2 * 3 ** 2 // 4 % 5 - -1 | 7 / 2 | 'ab' * 3 + 'c' | [1] * 2 + [3]
'a' < 'b' <= 'b' != 'c' | 1 in [1, 2] and 3 not in (1, 2) | 'b' in 'abc' | 'x' in messages[0] | not none
messages[0].role | messages[0]['role'] | messages[-1].content[2:8:2] | messages[1:] | length | messages | map(attribute='role') | join(',')
messages | selectattr('role', 'equalto', 'user') | list | length | messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | list
nothing | nothing.x is undefined | nothing is defined | (nothing or 'a') | nothing | default('b') | '' | default('c', true)
'%s is %d and %.2f%%' % ('a', 3, 1.5) | '%(a)s %(b)5d|' % {'a': 1, 'b': 2} | '%-5s|%05d|%x' % ('a', 42, 255) | '%s-%s' | format(1, 2)
'{} {1} {a:>5}|{b!r}'.format('x', 'y', a=3, b='q') if false else '{0} {1} {a:>5}|{b!r}'.format('x', 'y', a=3, b='q') | '{{}} {}'.format([1])
' a '.strip() + '|' + 'xaxx'.strip('x') + '|' + 'abc'.upper() | 'a,b,,c'.split(',') | 'a b  c'.split() | 'a,b,c'.rsplit(',', 1) | 'a\\nb\\r\\n'.splitlines()
'a-b'.replace('-', '+') | 'aaa'.replace('a', 'b', 2) | ','.join(['a', 'b']) | 'ab'.startswith(('a', 'c')) | 'ab'.endswith('b') | 'abcabc'.find('c')
'abc'.rfind('z') | 'aXb'.swapcase() | 'hello world'.title() | 'hello'.capitalize() | 'a'.center(5, '*') | '7'.zfill(3) | 'a\\tb'.expandtabs(4) | 'a'.isalpha()
'abc'.removeprefix('a').removesuffix('c') | 'a=b=c'.partition('=') | 'a=b=c'.rpartition('=') | 'abca'.count('a') | 'abc'.index('c') | 'A'.casefold()
{'a': 1}.get('a') | {'a': 1}.get('b', 2) | {'a': 1, 'b': 2}.items() | list | {'a': 1}.keys() | list | {'b': 1, 'a': 2} | dictsort | {'a': 1}.values() | list
[3, 1, 2] | sort | [3, 1, 2] | sort(reverse=true) | ['b', 'A'] | sort | [1, 1, 2] | unique | list | [1, 2, 3] | reverse | list | 'abc' | reverse | [1, 2] | sum
[1, 2, 3] | first | [1, 2, 3] | last | [1, 5] | max | [1, 5] | min | 'abc' | list | [1, 2, 3, 4, 5] | batch(2, 'x') | list | [1, 2, 3, 4, 5] | slice(2) | list
'a b' | title | 'x' | upper | 'X' | lower | ' x ' | trim | 'xxaxx' | trim('x') | 'abc' | replace('b', 'd') | 'a\\nb\\n\\nc' | indent(2) | 'a\\nb' | indent('> ', true)
'abcdef' | truncate(4) | 'a b c' | wordcount | 3.7 | int | '12' | int | 'x' | int(5) | '1.5' | float | 3.14159 | round(2) | 2.5 | round(0, 'ceil') | -3 | abs
{'b': [1, none, true], 'a': 'é<>&"'} | tojson | {'b': 1, 'a': 2} | tojson(sort_keys=true) | [1, {'a': 2}] | tojson(indent=2) | [1, 2] | tojson(separators=(',', ':')) | 'é' | tojson(ensure_ascii=true)
'<a & "b">' | e | '<a>' | escape | string | '<a>' | safe | ('<a>' | safe) + '<b>' | ('%s' | safe) % '<c>' | ('<a>' | forceescape) ~ '<' | 'a b&c' | urlencode
1 is number | 'a' is string | [] is iterable | {} is mapping | [] is sequence | none is none | 1 is odd | 2 is even | 4 is divisibleby 2 | 1 is integer | 1.0 is float | true is boolean
'a' is lower | 'A' is upper | 1 is sameas 1 | 1 is eq 1 | 1 is ne 2 | 2 is gt 1 | 1 is lt 2 | 2 is ge 2 | 1 is le 1 | 'a' is in 'abc' | raise_exception is callable | 'upper' is filter | 'odd' is test
range(5) | list | range(1, 10, 3) | list | dict(a=1, b=2) | dict([('a', 1)]) | [[1, 'a'], [1, 'b']] | groupby(0) | list | [{'a': 2}, {'a': 1}] | sort(attribute='a') | [{'a': {'b': 1}}] | map(attribute='a.b') | list
1 if true else 2 | 1 if false | (1, 'a') | [] or [1] | 0 and 1 | {'a': 1}['a'] | {'items': 3}['items'] | {'a-b': 1}['a-b'] | 'abc'[1] | [1, 2][-1] | 'abc'[::-1] | (1, 2, 3)[1:] | ['a', 'b'] | map('upper') | join
1024 | filesizeformat | ['a', 'b'] | join('-') | [{'a': 1}, {'a': 2}] | join(',', attribute='a') | [1, 0, 2] | select | list | [1, 2, 3] | select('odd') | list | [1, 2] | reject('odd') | list | 'ab' | count | [0, 1] | map('string') | list
(messages | first).role | loop is defined | messages is sequence and messages is not mapping | 10.0 is integer | 10 is float | 1e3 | 1_000 | 0x1f | true ~ false ~ none
""".strip()


def separate(line: str) -> list[str]:
    """A line holds expressions; a bar between two may belong to the first, so each prefix of the line is one, too."""
    parts = line.split(" | ")
    return [
        " | ".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, min(start + 4, len(parts)) + 1)
    ]


@pytest.mark.parametrize("line", EXPRESSIONS.splitlines())
def test_expressions_mean_what_they_mean_to_jinja(line: str) -> None:
    compared = 0
    for expression in separate(line):
        source = "{{ " + expression + " }}"
        try:
            expected = as_transformers_does(source, CHAT)
        except Exception:
            with pytest.raises(TemplateError):
                template(source).render(CHAT)
            continue
        if " at 0x" not in expected:
            assert template(source).render(CHAT) == expected, expression
            compared += 1
    assert compared >= 2


STATEMENTS = {
    "loop": "{% for a in 'xyz' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
    "{{ loop.cycle('p', 'q') }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.changed(a) }}{{ loop.depth }}{% else %}none{% endfor %}",
    "else": "{% for a in [] %}{{ a }}{% else %}none{% endfor %}",
    "filtered": "{% for a in range(9) if a is odd %}{{ a }}{{ loop.length }}{% endfor %}",
    "unpacked": "{% for a, b in {'x': 1, 'y': 2}.items() %}{{ a }}{{ b }}{% endfor %}{% for k, v in {'z': 3} | dictsort %}{{ k }}{% endfor %}",
    "breaks": "{% for a in range(9) %}{% if a == 2 %}{% continue %}{% elif a == 5 %}{% break %}{% endif %}{{ a }}{% endfor %}",
    "generator": "{% for a in messages | map(attribute='role') %}{{ a }}{{ loop.last }}{% endfor %}",
    "recursive": "{% for a in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ a.n }}{{ loop(a.c) }}{{ loop.depth0 }}{% endfor %}",
    "macro": "{% macro m(a, b='x', c=none) %}[{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}]{% endmacro %}{{ m(1) }}{{ m(1, 2, 3, 4, d=5) }}{{ m(*[7, 8]) }}{{ m(**{'a': 9}) }}{{ m.name }}",
    "call": "{% macro m() %}<{{ caller('x') }}>{% endmacro %}{% call(a) m() %}{{ a }}{{ messages | length }}{% endcall %}",
    "set": "{% set a = 1 %}{% set b, c = 2, 3 %}{{ a }}{{ b }}{{ c }}{% set d %}x{{ a }}y{% endset %}{{ d }}{% set e | upper %}x{% endset %}{{ e }}",
    "scope": "{% set a = 1 %}{% for i in range(2) %}{% set a = 2 %}{{ a }}{% endfor %}{{ a }}{% if true %}{% set a = 3 %}{% endif %}{{ a }}",
    "namespace": "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b is defined }}",
    "namespace from a dict": "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "with": "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "filter block": "{% filter upper %}abc{{ messages[0].role }}{% endfilter %}",
    "block": "{% block x %}inner{% endblock %}{{ self.x() }}",
    "raw": "{% raw %}{{ a }}{% endraw %}{# comment #}",
    "whitespace": "  {% if true %}\n  a\n  {%- endif %}\n\n  {{- 'b' -}}  \n c {%+ if true %}d{% endif +%}\n e\n",
    "generators": "{% set j = joiner('; ') %}{{ j() }}a{{ j() }}b{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "text from messages": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "nested loops": "{% for m in messages %}{% for c in m.content[:3] %}{{ loop.index }}{{ c }}{% endfor %}{% endfor %}",
    "long text in a test": "{{ messages | selectattr('content', 'equalto', 'a.' * 99) | list | length }}"
    "{{ [none] | map('default', 'b.' * 99, true) | list }}",
    "do nothing": "",
    "trailing newline": "a\n\n",
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_mean_what_they_mean_to_jinja(name: str) -> None:
    assert template(STATEMENTS[name]).render(CHAT) == as_transformers_does(STATEMENTS[name], CHAT)


def test_generation_tag_prints_its_content() -> None:
    source = "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }},{% endgeneration %}{% endfor %}"
    assert template(source).render(CHAT) == "system,user,assistant,user,"


def test_date_of_today() -> None:
    assert template("{{ strftime_now('%Y') }}").render(CHAT) in {str(datetime.now().year), str(datetime.now().year - 1)}


def test_messages_are_data() -> None:
    text = "{{ 7 * 7 }}{% raw %}{# x #}<|im_end|>"
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert template(source).render([{"role": "user", "content": text}]) == text
    twice = "{% set t = messages[0].content ~ '' %}{{ t | string | replace('~', 'b') }}"
    assert template(twice).render([{"role": "user", "content": text}]) == text


def test_errors_name_the_line_and_the_reason() -> None:
    for source, message in {
        "a\nb\n{{ messages[0].x.y }}": "line 3: 'dict object' has no attribute 'x'",
        "{{ 1 + 'a' }}": "line 1: unsupported operand",
        "\n{{ raise_exception('System role not supported') }}": "refuses this conversation: System role not supported",
        "{{ raise_exception('a\nb' * 1000) }}": "refuses this conversation: a ba ba b",
    }.items():
        with pytest.raises(TemplateError) as caught:
            template(source).render(CHAT)
        assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    for source, message in {
        "a\n{% if %}": "line 2: Expected an expression",
        "{{ a | unheard_of }}": "unheard_of",
    }.items():
        with pytest.raises(TemplateError, match="not valid") as caught:
            template(source)
        assert message in str(caught.value)


def test_errors_hold_no_memory() -> None:
    with pytest.raises(TemplateError) as caught:
        template("{% set a = 'a' * 20000000 %}{{ a + nothing.x }}").render(CHAT)
    assert caught.value.__context__ is None and caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("messages", "variables", "message"),
    [
        (["hi"], {}, r"messages\[0\] is not a mapping with a 'role'"),
        ([USER, {"content": "x"}], {}, r"messages\[1\] is not a mapping"),
        ([{"role": "user", "content": b"x"}], {}, r"messages\[0\].content is a bytes"),
        ([{"role": "user", "content": [object()]}], {}, r"messages\[0\].content\[0\] is a object"),
        ([USER], {"f": print}, "f is a builtin_function_or_method"),
        ([USER], {"messages": []}, "'messages' cannot be given as a variable"),
        ([USER], {"add_generation_prompt": False}, "cannot be given as a variable"),
    ],
)
def test_bad_input_is_named(messages: Any, variables: Mapping[str, Any], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        template("{{ messages }}").render(messages, variables=variables)


def test_deep_input_is_refused() -> None:
    value: Any = "x"
    for _ in range(5000):
        value = [value]
    with pytest.raises(TemplateError, match="nested more than 64 deep"):
        template("{{ messages }}").render([{"role": "user", "content": value}])


def test_long_conversations_are_no_attack() -> None:
    chat = [
        {"role": ("user", "assistant")[i % 2], "content": f"<think>{i}</think> " + "word " * 400} for i in range(1000)
    ]
    for source in (SYSTEM_MERGED, TOOL_LIST, *TEMPLATES.values()):
        text = template(source).render(chat, tools=TOOLS * 50)
        assert len(text) > 1_900_000
    # Text put together piece by piece costs the square of its length.
    pieces = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content %}{% endfor %}{{ ns.t }}"
    )
    assert len(template(pieces).render(chat[:200])) > 400_000


def test_threads_share_a_template() -> None:
    shared = template(TOOL_LIST)
    expected = {n: shared.render(CHAT[:n]) for n in (1, 2, 3, 4)}
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(20):
            if shared.render(CHAT[:n]) != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- hostile templates -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of memory is read with the resource module")
def test_greedy_templates_end_soon_and_stay_small() -> None:
    program = Path(__file__).parent / "helpers" / "hostile_templates.py"
    # A template that is not stopped would run for ages: two minutes are enough for all of them on any machine.
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(GREEDY) and len(lines) > 150
    assert [line for line in lines if "TemplateError" not in line[3]] == []
    assert sum(int(line[2]) for line in lines) < 200  # growth of the peak over all of them, in MB


def test_greedy_templates_end_in_threads() -> None:
    names = ["nested loops", "double by tilde", "endless macro", "compare shared lists", "times", "brackets"]
    results: dict[str, str] = {}
    threads = [threading.Thread(target=lambda n=name: results.update({n: outcome(GREEDY[n])})) for name in names]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == sorted(names) and all("TemplateError" in text for text in results.values())


def test_a_stopped_template_can_be_used_again() -> None:
    source = "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok"
    sometimes = template(source)
    for _ in range(2):
        with pytest.raises(TemplateError, match="more work or memory"):
            sometimes.render([{"role": "user", "content": "loop"}])
        assert sometimes.render([USER]) == "ok"


@pytest.mark.parametrize("name", ESCAPES)
def test_there_is_no_way_out(name: str) -> None:
    result = outcome(ESCAPES[name])
    assert result.startswith(("TemplateError", "printed"))
    if result.startswith("printed"):
        # What is undefined prints nothing; a method may be printed, but it was not called.
        for leaked in ("class '", "<function", "__builtins__", "Environment"):
            assert leaked not in result


# --- templates in files ----------------------------------------------------------------------------------------------


def test_named_templates() -> None:
    metadata = {
        "tokenizer.chat_template": "default {{ messages[0].role }}",
        "tokenizer.chat_template.tool_use": "tools {{ tools | length }}",
        "tokenizer.chat_template.rag": "rag",
        "tokenizer.chat_templates": ["tool_use", "rag"],
    }
    assert templates_of(metadata).keys() == {"default", "tool_use", "rag"}
    usual = ChatTemplate.from_metadata(metadata, "", "")
    assert usual.names == ("default", "tool_use", "rag") and usual.name == "default" and usual.warning is None
    assert usual.source == metadata["tokenizer.chat_template"]
    assert usual.render([USER]) == "default user" and usual.render([USER], tools=TOOLS) == "tools 1"
    assert ChatTemplate.from_metadata(metadata, "", "", "rag").render([USER], tools=TOOLS) == "rag"
    with pytest.raises(TemplateError, match="there is no chat template 'x'; there are: default, tool_use, rag"):
        ChatTemplate.from_metadata(metadata, "", "", "x")
    only_named = {"tokenizer.chat_template.rag": "rag"}
    assert ChatTemplate.from_metadata(only_named, "", "").render([USER]) == "rag"


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({}, "chatml"),
        ({"tokenizer.ggml.tokens": [b"a", b"<|im_start|>"]}, "chatml"),
        ({"tokenizer.ggml.tokens": ["a", "<|start_header_id|>"], "general.architecture": "llama"}, "llama3"),
        ({"tokenizer.ggml.tokens": [b"\xff", b"<start_of_turn>"]}, "gemma"),
        ({"general.architecture": "gemma3"}, "gemma"),
        ({"general.architecture": "llama", "tokenizer.ggml.model": "llama"}, "llama2"),
        ({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}, "chatml"),
        ({"tokenizer.ggml.tokens": [b"[INST]"], "general.architecture": "llama"}, "mistral"),
        ({"tokenizer.ggml.tokens": [b"<|end|>"], "general.architecture": "phi3"}, "phi3"),
        ({"tokenizer.ggml.tokens": ["<｜Assistant｜>".encode()]}, "deepseek"),
    ],
)
def test_files_without_a_template_get_the_nearest(metadata: dict[str, Any], family: str) -> None:
    assert nearest(metadata) == family
    found = ChatTemplate.from_metadata(metadata, "<s>", "</s>")
    assert found.warning == f"the file has no chat template; using the {family} template, answers may be worse"
    assert "Hello" in found.render([USER])


def test_files_with_a_broken_template_get_the_nearest() -> None:
    found = ChatTemplate.from_metadata({"tokenizer.chat_template": "\n{% if %}"}, "", "")
    assert found.warning is not None and "line 2: Expected an expression" in found.warning
    assert found.name == "chatml" and found.render([USER]).startswith("<|im_start|>user\n")
    for odd in (5, "", "  \n", [1]):
        assert "no chat template" in str(ChatTemplate.from_metadata({"tokenizer.chat_template": odd}, "", "").warning)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU"
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>",
        ),
        ("gemma", "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"),
        ("llama2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s>"),
        ("mistral", "<s>[INST]S\n\nU[/INST]A</s>"),
        ("phi3", "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n"),
        (
            "granite",
            "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>A<|end_of_text|>\n",
        ),
        (
            "command-r",
            "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>U"
            "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A<|END_OF_TURN_TOKEN|>",
        ),
        ("deepseek", "<s>S\n\n<｜User｜>U<｜Assistant｜>A</s>"),
    ],
)
def test_fallbacks(family: str, expected: str) -> None:
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    found = ChatTemplate.from_metadata({}, "<s>", "</s>", family)
    assert found.warning is None and found.name == family
    assert found.render(chat, add_generation_prompt=False) == expected
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
    assert found.render(parts, add_generation_prompt=False) == expected
    assert found.render(chat[:2]).startswith(found.render(chat[:2], add_generation_prompt=False))


# --- real files ------------------------------------------------------------------------------------------------------


def test_the_template_of_smollm2(smollm2_path: Path) -> None:
    from edgellm.gguf import open_gguf

    with open_gguf(smollm2_path) as file:
        metadata = dict(file.metadata)
        found = ChatTemplate.from_metadata(metadata, "<|im_start|>", "<|im_end|>")
        assert found.warning is None
        for chat in (CHAT, CHAT[1:2]):
            assert found.render(chat) == as_transformers_does(str(metadata["tokenizer.chat_template"]), chat)
    assert found.render([{"role": "user", "content": "hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_gemma3_without_a_template(gemma3_path: Path) -> None:
    from edgellm.gguf import open_gguf

    with open_gguf(gemma3_path) as file:
        found = ChatTemplate.from_metadata(file.metadata, "<bos>", "<eos>")
    assert found.name == "gemma" and found.warning is not None
    assert (
        found.render([{"role": "user", "content": "hi"}])
        == "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_jinja_is_imported_only_to_compile() -> None:
    program = "import sys, edgellm.chat_template; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Templates that ask for endless time, endless memory or a way out, and how to run them all."""

from __future__ import annotations

import sys

# ruff: noqa: E501 (a template a line)

_DOUBLE = "{% set ns = namespace(v=SEED) %}{% for i in range(60) %}{% set ns.v = STEP %}{% endfor %}{{ USE }}"


def _doubled(seed: str, step: str, use: str) -> str:
    return _DOUBLE.replace("SEED", seed).replace("STEP", step).replace("USE", use)


_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
_MEGABYTE = "{% set m = 'a' * 1000000 %}"

# Each asks for far more than a second or a gigabyte when run by Jinja's own immutable sandbox, or should not compile.
GREEDY: dict[str, str] = {
    # one huge string
    "times": "{{ 'a' * 10**10 }}",
    "times reversed": "{{ 10**10 * 'a' }}",
    "list times": "{{ ([0] * 10**9) | length }}",
    "tuple times": "{{ ((0,) * 10**9) | length }}",
    "undefined in a filter": "{{ nothing | center(10**10) }}",
    "center filter": "{{ 'a' | center(10**10) }}",
    "center method": "{{ 'a'.center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) | length }}",
    "zfill": "{{ '1'.zfill(10**10) | length }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(10**8) | length }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "indent by text": "{{ ('a\n' * 10000) | indent('b' * 1000000) | length }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10**10, 1) }}",
    "percent precision": "{{ '%.999999999f' % 1.5 }}",
    "percent with a name": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "percent with brackets in the name": "{{ '%(a(b))9999999999d' % {'a(b)': 1} }}",
    "percent after percents": "{{ '%l%%9999999999d' % 1 }}",
    "percent many times": _MEGABYTE + "{{ ('%(a)s' * 100000) % {'a': m} }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "format method": "{{ '{:9999999999}'.format(1) }}",
    "format method nested": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "format method many times": _MEGABYTE + "{{ ('{0}' * 100000).format(m) }}",
    "format_map": "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
    "format through map": "{{ ['%9999999999d'] | map('format', 1) | join }}",
    "center through map": "{{ ['a'] | map('center', 10**10) | join }}",
    "tojson indent": "{{ [[1]] | tojson(indent=10**10) }}",
    "tojson separators": _MEGABYTE + "{{ range(99999) | list | tojson(separators=(m, m)) }}",
    "join": _MEGABYTE + "{{ range(99999) | join(m) | length }}",
    "join method": _MEGABYTE + "{{ m.join(['a'] * 100000) | length }}",
    "join of shared text": _MEGABYTE + "{{ ([m] * 100000) | map('string') | join | length }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) | length }}",
    "replace nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) | length }}",
    "replace filter": "{{ ('a' * 100000) | replace('', 'b' * 100000) | length }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "slice": "{{ [1] | slice(10**9) | list | length }}",
    "dict.fromkeys": "{{ dict.fromkeys(range(99999)) }}{{ {}.fromkeys('ab' * 10**9) }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "to_bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "wide characters": "{{ ('\U0001f600' * 40000000) | length }}",
    "list of characters": "{{ ('\u0436' * 9000000) | list | length }}",
    "split into characters": "{{ ('a ' * 9000000).split(' ') | length }}",
    "splitlines": "{{ ('\n' * 30000000).splitlines() | length }}",
    # doubling
    "double by tilde": _doubled("'a'", "ns.v ~ ns.v", "ns.v | length"),
    "double by plus": _doubled("'a'", "ns.v + ns.v", "ns.v | length"),
    "double a list": _doubled("[0]", "ns.v + ns.v", "ns.v | length"),
    "double by join": _doubled("'a'", "[ns.v, ns.v] | join", "ns.v | length"),
    "double by percent": _doubled("'a'", "'%s%s' % (ns.v, ns.v)", "ns.v | length"),
    "double by format": _doubled("'a'", "'{}{}'.format(ns.v, ns.v)", "ns.v | length"),
    "double by replace": _doubled("'a'", "ns.v.replace('a', 'aa')", "ns.v | length"),
    "double by urlencode": _doubled("'%'", "(ns.v ~ ns.v) | urlencode", "ns.v | length"),
    "double by json": _doubled("'\"'", "ns.v | tojson | string", "ns.v | length"),
    "double by set block": "{% set ns = namespace(v='a') %}{% for i in range(60) %}"
    "{% set ns.v %}{{ ns.v }}{{ ns.v }}{% endset %}{% endfor %}{{ ns.v | length }}",
    "double by macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% else %}a{% endif %}{% endmacro %}{{ f(60) }}",
    "double by block": "{% block b %}a{% if nothing is undefined %}{{ self.b() }}{{ self.b() }}{% endif %}{% endblock %}",
    "double by recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    # small in memory, endless to look at: lists that hold one list twice, many times over
    "print shared lists": _doubled("[1]", "[ns.v, ns.v]", "ns.v"),
    "tilde shared lists": _doubled("[1]", "[ns.v, ns.v]", "ns.v ~ ''"),
    "string of shared lists": _doubled("[1]", "[ns.v, ns.v]", "ns.v | string | length"),
    "json of shared lists": _doubled("[1]", "[ns.v, ns.v]", "ns.v | tojson | length"),
    "percent of shared lists": _doubled("[1]", "[ns.v, ns.v]", "'%s' % (ns.v,)"),
    "format of shared lists": _doubled("[1]", "[ns.v, ns.v]", "'{}'.format(ns.v)"),
    "join of shared lists": _doubled("[1]", "[ns.v, ns.v]", "[ns.v] | join"),
    "raise shared lists": _doubled("[1]", "[ns.v, ns.v]", "raise_exception(ns.v)"),
    "hash shared tuples": _doubled("(1,)", "(ns.v, ns.v)", "{ns.v: 1} | length"),
    "look up shared tuples": _doubled("(1,)", "(ns.v, ns.v)", "{}[ns.v]"),
    "get shared tuples": _doubled("(1,)", "(ns.v, ns.v)", "{}.get(ns.v)"),
    "unique shared tuples": _doubled("(1,)", "(ns.v, ns.v)", "[ns.v] | unique | list | length"),
    "dict of shared tuples": _doubled("(1,)", "(ns.v, ns.v)", "dict([(ns.v, 1)]) | length"),
    "test name shared tuples": _doubled("(1,)", "(ns.v, ns.v)", "ns.v is filter"),
    "values of shared dicts": _doubled("{}", "{'a': ns.v, 'b': ns.v}", "ns.v.values()"),
    "compare shared lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "less than shared lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a < ns.b }}",
    "find shared lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a in [ns.b] }}{{ [ns.b].index(ns.a) }}",
    "loop.changed on shared lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
    "{% for x in [ns.a, ns.b] %}{{ loop.changed(x) }}{% endfor %}",
    "varargs shared": "{% set ns = namespace(a=(1,)) %}{% macro f() %}{% set ns.a = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ f(ns.a, ns.a) }}{% endfor %}{{ ns.a }}",
    # endless time
    "nested loops": _LOOP.replace("BODY", ""),
    "nested loops of text": _LOOP.replace("BODY", "abc"),
    "nested loops with tests": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "loops in macros": "{% macro f() %}{% for a in range(99999) %}{% endfor %}{% endmacro %}"
    "{% for a in range(99999) %}{{ f() }}{% endfor %}",
    "loops in call blocks": "{% macro f() %}{% for a in range(999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call f() %}{% call f() %}{% call f() %}x{% endcall %}{% endcall %}{% endcall %}",
    "loops of slices": _MEGABYTE + "{% for a in range(99999) %}{% set b = m[1:] %}{% endfor %}",
    "kept slices": _MEGABYTE + "{% set ns = namespace(l=[]) %}{% for a in range(99999) %}"
    "{% set ns.l = [ns.l, m[1:]] %}{% endfor %}",
    "loops of comparisons": _MEGABYTE
    + "{% set n = m[1:] ~ 'a' %}{% for a in range(99999) %}{% if m == n %}{% endif %}{% endfor %}",
    "loops of searches": _MEGABYTE + "{% for a in range(99999) %}{{ 'b' in m }}{% endfor %}",
    "hard search": _MEGABYTE
    + "{% set n = 'b' ~ 'a' * 90 %}{% for a in range(9999) %}{% if n in m %}{% endif %}{% endfor %}",
    "hard search backwards": "{% set m = 'a' * 9000000 %}{{ m.rfind('b' ~ 'a' * 4000000) }}",
    "hard split backwards": "{% set m = 'a' * 9000000 %}{{ m.rsplit('b' ~ 'a' * 4000000) | length }}",
    "hard strip": "{% set m = 'a' * 9000000 %}{{ m.strip('b' * 4000000 ~ 'a') | length }}",
    "hard trim": "{% set m = 'a' * 9000000 %}{{ m | trim('b' * 4000000 ~ 'a') | length }}",
    "loops of upper": _MEGABYTE + "{% for a in range(99999) %}{% set b = m.upper() %}{% endfor %}",
    "loops of title": _MEGABYTE + "{% for a in range(99999) %}{% set b = m | title %}{% endfor %}",
    "loops of words": _MEGABYTE + "{% for a in range(99999) %}{% set b = m | wordcount %}{% endfor %}",
    "loops of reversing": _MEGABYTE + "{% for a in range(99999) %}{% set b = m | reverse %}{% endfor %}",
    "loops of sorting": "{% set l = range(99999) | list %}{% for a in range(999) %}{% set b = l | sort | list %}{% endfor %}",
    "sort long equal beginnings": "{% set m = 'a' * 100000 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set ns.l = ns.l + [m ~ i] %}{% endfor %}{{ ns.l | sort | length }}",
    "sum lists": "{{ ([[0]] * 900000) | sum(start=[]) | length }}",
    "chained generators": "{% set ns = namespace(g=range(99999)) %}{% for i in range(9999) %}"
    "{% set ns.g = ns.g | map('string') %}{% endfor %}{{ ns.g | list | length }}",
    "generators in comparisons": "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ -1 in l | select }}{% endfor %}",
    "tests through select": _MEGABYTE + "{{ ([m] * 99999) | select('in', m ~ 'b') | list | length }}",
    "nothing selected": "{% for i in range(99999) %}{{ range(99999) | rejectattr(-1, 'string') | list }}{% endfor %}",
    "map of filters": _MEGABYTE + "{{ ([m] * 99999) | map('upper') | list | length }}",
    "unpacked arguments": "{% macro f() %}{% endmacro %}{% for i in range(9999) %}{{ f(*range(99999)) }}{% endfor %}",
    "unpacked text": "{{ [].index(*('a' * 30000000)) }}",
    "namespaces of namespaces": "{% set ns = namespace(v=1) %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% set ns.v = namespace(v=ns.v) %}{% endfor %}{% endfor %}",
    "chains of macros": "{% set ns = namespace(v=1) %}{% for i in range(99999) %}{% for j in range(99) %}{% set p = ns.v %}"
    "{% macro f() %}{{ p }}{% endmacro %}{% set ns.v = f %}{% endfor %}{% endfor %}",
    "chains of dicts": "{% set ns = namespace(v={}) %}{% for i in range(99999) %}{% for j in range(99) %}"
    "{% set ns.v = {'a': ns.v} %}{% endfor %}{% endfor %}",
    "chains of views": "{% set ns = namespace(v={}) %}{% for i in range(99999) %}{% for j in range(99) %}"
    "{% set ns.v = {'a': ns.v}.values() %}{% endfor %}{% endfor %}",
    "chains of generators": "{% set ns = namespace(v=[]) %}{% for i in range(99999) %}{% for j in range(99) %}"
    "{% set ns.v = [ns.v] | map('string') %}{% endfor %}{% endfor %}",
    "chains of undefined": "{% set ns = namespace(v={}) %}{% for i in range(99999) %}{% for j in range(99) %}"
    "{% set ns.v = {'a': ns.v}.b %}{% endfor %}{% endfor %}",
    # huge numbers
    "powers": "{{ 9 ** (9 ** 9) }}",
    "powers of powers": "{% set ns = namespace(v=3) %}{% for i in range(60) %}{% set ns.v = ns.v ** 3 %}{% endfor %}{{ ns.v % 7 }}",
    "products": "{% set ns = namespace(v=3) %}{% for i in range(60) %}{% set ns.v = ns.v * ns.v %}{% endfor %}{{ ns.v % 7 }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "int of hexadecimals": "{% set n = ('f' * 4000000) | int(0, 16) %}{% for i in range(999) %}{{ n // 7 }}{{ n * n }}{% endfor %}",
    "number in a test": "{% set n = ('f' * 4000000) | int(0, 16) %}{{ n is divisibleby(7) }}{{ n * n }}",
    "int range": "{{ range(10**9) | length }}",
    # recursion
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "endless call block": "{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
    "endless block": "{% block b %}{{ self.b() }}{% endblock %}",
    "deep list": "{% set ns = namespace(v=[]) %}{% for i in range(99999) %}{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v }}",
    "deep comparison": "{% set ns = namespace(v=[], w=[]) %}{% for i in range(9999) %}{% set ns.v = [ns.v] %}"
    "{% set ns.w = [ns.w] %}{% endfor %}{{ ns.v == ns.w }}",
    # other things chat templates do not need
    "include": "{% include 'x' %}",
    "extends": "{% extends 'x' %}",
    "import": "{% import 'x' as y %}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "date format": "{{ strftime_now('%Y' * 100000) }}",
    # what is not found is printed in an error message
    "unknown filter": "{{ ['a'] | map('\x01' * 7000000) | list }}",
    "unknown test": "{{ ['a'] | select('\x01' * 7000000) | list }}",
    "unknown key": "{{ {}['\x01' * 7000000].a }}",
    "unknown attribute": "{{ ('' | attr('\x01' * 7000000)).a }}",
    "unknown item": "{{ [1].index('\x01' * 7000000) }}",
    "not a number": "{{ ('\x01' * 7000000) | float }}",
    "raised text": "{{ raise_exception(['\x01' * 7000000]) }}",
    # what is written in the template, many times over
    "literal search": "{% set n = 'b' ~ 'a' * 90 %}{% for i in range(99999) %}{% if n in '"
    + "a" * 60000
    + "' %}{% endif %}{% endfor %}",
    "literal printed": "{% set t %}{% for i in range(99999) %}{{ '" + "a" * 60000 + "' }}{% endfor %}{% endset %}",
    "literal joined": "{% set t %}{% for i in range(99999) %}{{ '" + "a" * 60000 + "' ~ i }}{% endfor %}{% endset %}",
    "text printed": "{% set t %}{% for i in range(99999) %}" + "a" * 60000 + "{% endfor %}{% endset %}",
    "printed far too much": "{% for i in range(99) %}{{ 'a' * 100000 }}{% endfor %}",
    # long paths of attributes
    "map path": "{{ (['a'] * 300000) | map(attribute='" + "a." * 60000 + "a') | list }}",
    "map long path": "{{ ['a'] | map(attribute='.' * 5000000) | list }}",
    "sort path": "{{ (['a'] * 300000) | sort(attribute='" + "a.b," * 100 + "a') | list }}",
    "join path": "{{ (['a'] * 300000) | join('', attribute='" + "a." * 60000 + "a') }}",
    "many fields": "{{ ('{}' * 9000000).format(1) }}",
    "many printf fields": "{{ ('%s' * 9000000) % 1 }}",
    "colliding keys": "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
    "{% set ns.l = ns.l + [(i * 2305843009213693951, 1)] %}{% endfor %}{{ dict(ns.l) | length }}",
    "colliding keys at once": "{% macro f() %}{% endmacro %}{{ range(13000) | map('abs') | list | unique | list | length }}"
    "{% set p = 2305843009213693951 %}{% set l %}{% endset %}{{ ([p, p * 2, p * 3] * 99999) | unique | list | length }}",
    "keys made on the way": _doubled("(1,)", "(ns.v, ns.v)", "dict([[ns.v, 1] | select]) | length"),
    "keys made on the way out": _doubled("(1,)", "(ns.v, ns.v)", "dict([[ns.v, 1]] | map('list')) | length"),
    # while compiling
    "brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "lists": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "nots": "{{ " + "not " * 20000 + "1 }}",
    "attributes": "{{ a" + ".a" * 40000 + " }}",
    "sums": "{{ 1" + "+1" * 40000 + " }}",
    "tildes": "{{ 'a'" + "~'a'" * 30000 + " }}",
    "filters": "{{ 'a'" + "|e" * 40000 + " }}",
    "ifs": "{% if a %}" * 5000 + "{% endif %}" * 5000,
    "fors": "{% for a in b %}" * 3000 + "{% endfor %}" * 3000,
    "outputs": "{{a}}" * 25000,
    "long": "a" * 2_000_000,
    "digits": "{{ " + "9" * 100000 + " }}",
    "hexadecimals": "{{ 0x" + "f" * 100000 + " % 7 }}{{ 0x" + "f" * 20000 + " * 2 }}",
    "constants": "{{ ['a', 'a'] | join('" + "a" * 60000 + "') * 10**9 }}",
}

# Ways from a value to Python's internals; none may print anything, or get a class or function of Python's own.
ESCAPES: dict[str, str] = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "class by attr": "{{ (''|attr('__class__'))|attr('__mro__') }}",
    "class by attr in pieces": "{{ (''|attr('__cla' ~ 'ss__')).mro() }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class by format item": "{{ '{0[__class__]}'.format('') }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format by attr": "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "format by map": "{{ ['{0.__class__}'] | map(attribute='format') | first }}{{ (['{0.__class__}'] | map(attribute='format') | first)(1) }}",
    "class by map": "{{ [''] | map(attribute='__class__.__mro__') | first }}",
    "class by sort": "{{ [''] | sort(attribute='__class__.__name__') | map(attribute='__class__') | list }}",
    "class by groupby": "{{ [''] | groupby('__class__') | first }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals by item": "{{ raise_exception['__globals__'] }}",
    "globals of range": "{{ range.__globals__ }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "init of namespace": "{{ namespace.__init__.__globals__ }}",
    "environment of a macro": "{% macro f() %}{% endmacro %}{{ f._environment.globals }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "loop": "{% for a in [1] %}{{ loop._undefined.__init__ }}{{ loop._iterator }}{% endfor %}",
    "cycler": "{{ cycler(1).next.__func__.__globals__ }}",
    "joiner": "{{ joiner().__init__.__globals__ }}",
    "generator": "{{ ([1] | map('string')).gi_frame.f_globals }}",
    "method": "{{ 'a'.upper.__self__.__class__ }}",
    "undefined": "{{ nothing.__class__ }}",
    "undefined init": "{{ nothing.__init__.__globals__ }}",
    "mutate": "{{ messages.append(1) }}",
    "mutate a dict": "{{ messages[0].update({'a': 1}) }}",
    "mutate by filter": "{{ messages | map(attribute='clear') | first }}{{ (messages | map(attribute='clear') | first)() }}",
    "str.encode": "{{ 'a'.encode('unicode_escape') }}",
    "maketrans": "{{ 'a'.maketrans({}) }}",
    "class of dict": "{{ dict['a'].__origin__ }}",
    "mro": "{{ namespace.mro() }}",
    "call a string": "{{ 'a'() }}",
    "context": "{{ context }}{{ environment }}{{ t_1 }}{{ resolve }}{{ Undefined.__subclasses__() }}",
}


def outcome(source: str) -> str:
    """What becomes of one template: the text, or the error with its class."""
    from edgellm.chat_template import ChatTemplate
    from edgellm.errors import TemplateError

    try:
        return "printed " + ChatTemplate({"default": source}).render([{"role": "user", "content": "hi"}])
    except TemplateError as error:
        return f"TemplateError {error}"


if __name__ == "__main__":
    # Run all of them in this process, so that the caller can see its largest memory and stop it.
    import resource
    import time

    outcome("{{ 'warm' }}")
    for name, source in GREEDY.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        result = outcome(source)
        seconds = time.perf_counter() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"{name}\t{seconds:.2f}\t{grown // 1024}\t{result[:150]!r}")
        sys.stdout.flush()

"""Chat templates render as transformers renders them, and every failure is the client's."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from service.errors import InvalidRequestError, UnsupportedModelError
from service.text.chat_template import ChatTemplate

USER = {"role": "user", "content": "Grüße, 你好 <b>"}
CHAT = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Hi"}, USER]

BOS = "<s>"
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
LOOPS = """
{{ bos_token }}{% set ns = namespace(n=0) %}
{% for message in messages %}
  {% if message.role == "system" %}{% continue %}{% endif %}
  {% set ns.n = ns.n + 1 %}
  {% if ns.n == 3 %}{% break %}{% endif %}
[{{ loop.index }}:{{ message.content }}]
  {% generation %}x{% endgeneration %}
{% endfor %}
{{ messages | tojson(indent=2) }}{{ {"b": "é<", "a": none} | tojson }}
{% macro twice(s) %}{{ s }}{{ s }}{% endmacro %}{{ twice(missing) }}{{ missing is defined }}
"""


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("source", [CHATML, LOOPS], ids=["chatml", "loops"])
def test_renders_as_transformers_does(source: str, add_generation_prompt: bool) -> None:
    """Whitespace control, loop controls, JSON, macros and missing variables mean what template authors tested them
    with.
    """
    rendered = render_jinja_template(
        conversations=[CHAT], chat_template=source, add_generation_prompt=add_generation_prompt, bos_token=BOS
    )

    template = ChatTemplate(source, special_tokens={"bos_token": BOS})

    assert template.render(CHAT, add_generation_prompt=add_generation_prompt) == rendered[0][0]


def test_the_date_comes_from_the_clock_given() -> None:
    """`strftime_now` formats the clock that was passed in."""
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2031, 2, 3, tzinfo=UTC))

    assert template.render([USER]) == "03 Feb 2031"


def test_extra_variables_reach_the_template_but_never_replace_ours() -> None:
    """`tools` and the like are passed on; a client cannot redefine the begin token that way."""
    template = ChatTemplate("{{ bos_token }}{{ tools }}", special_tokens={"bos_token": BOS})

    assert template.render([USER], tools=7, bos_token=USER["content"]) == "<s>7"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate."),
        ("{{ messages[0].missing.name }}", "has no attribute 'missing'"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages[0].update({'role': 'system'}) }}", "attribute 'update' of 'dict' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        (
            "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}",
            "more than 200000 operations",
        ),
        ("{{ range(10**9) }}", "too big"),
        ("{{ undefined_function() }}", "undefined"),
        ("{{ messages | tojson(indent=messages) }}", "can't multiply"),
    ],
    ids=lambda value: value[:40],
)
def test_every_failure_is_the_clients_and_says_why(source: str, reason: str) -> None:
    """Whatever goes wrong in a template is InvalidRequestError about `messages` with the template's own words."""
    template = ChatTemplate(source)

    with pytest.raises(InvalidRequestError) as refused:
        template.render([USER])

    assert refused.value.param == "messages"
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ 10**10 * 'x' }}",
        "{{ [0] * 10**10 }}",
        "{{ 10 ** (10 ** 8) }}",
        "{% set ns = namespace(x=9**999) %}{% for _ in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for _ in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for _ in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for _ in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='x') %}{% for _ in range(60) %}{% set ns.x = {0: ns.x, 1: ns.x} %}{% endfor %}"
        "{{ ns.x | tojson }}",
        "{% set ns = namespace(x='x') %}{% for _ in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        "{{ '%s' % ns.x }}",
        "{% set ns = namespace(x='x') %}{% for _ in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        "{{ '{}'.format(ns.x) }}",
        "{% set ns = namespace(x='xx') %}{% for _ in range(60) %}{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}"
        "{% for _ in range(60) %}{% set ns.x = ns.x | replace('x', ns.x) %}{% endfor %}",
        "{% set x = 'x' * 10**7 %}{{ range(10**5) | list | join(x) }}",
        "{% set x = 'x' * 10**7 %}{{ x.join(['a'] * 10**5) }}",
        "{% set x = 'x' * 10**7 %}{% for _ in range(10**5) %}{{ x }}{% endfor %}",
        "{% set x = 'x' * 10**7 %}{% for _ in range(10**5) %}{% if x | upper %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 10**7 %}{% for _ in range(10**5) %}{% if 'y' in x %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 10**7 %}{% for _ in range(10**5) %}{% if x[1:] %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 10**7 %}{% for _ in range(10**5) %}{% if 'y' is in(x) %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 10**7 %}{{ range(10**5) | map('string') | join(x) }}",
        "{% set x = 'x' * 10**7 %}{{ x.join(range(10**5) | map('string')) }}",
        "{% set x = 'x' * 10**7 %}{{ range(10**5) | list | tojson(separators=(x, x)) }}",
        "{{ ([range(10**5) | list] * 10**5) | sum(start=[]) }}",
        "{{ 1.5 | round(10**10, 'ceil') }}",
        "{{ '%(x)10000000000d' % {'x': 1} }}",
        "{% for _ in range(10**5) %}" + "x" * 10**5 + "{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ 'x'.center(10**10) }}",
        "{{ '0'.zfill(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**10) }}",
        "{{ messages | tojson(indent=10**10) }}",
        "{{ 'x\ny' | indent(10**10) }}",
        "{{ lipsum(10**6) }}",
    ],
)
def test_no_template_takes_the_machine(source: str) -> None:
    """Neither its time nor its memory: whatever makes much of little is refused before it is made."""
    template = ChatTemplate(source)

    with pytest.raises(InvalidRequestError, match=r"more than 200000 operations|is not allowed|is unsafe|undefined"):
        template.render([USER])


@pytest.mark.parametrize("name", ["center", "wordwrap", "batch", "slice", "format"])
def test_filters_that_no_prompt_needs_are_not_there(name: str) -> None:
    """A template that wants one is refused when its model is loaded."""
    with pytest.raises(UnsupportedModelError, match=f"No filter named '{name}'"):
        ChatTemplate("{{ messages | " + name + "(10) }}")


def test_a_long_conversation_is_well_within_the_budget() -> None:
    """Four MiB, in a thousand messages, each of which is looked at, trimmed, replaced in, joined and printed."""
    source = (
        "{% for message in messages %}{% set text = message.content | trim | replace('a', 'b') %}"
        "{{ '<' ~ message.role + '>' + text.split('</think>')[-1] + (messages | last).role }}\n"
        "{{ '%s' % message.role | upper }}{{ {'arguments': message} | tojson(indent=2) }}{% endfor %}"
    )
    text = ("word " * 840).strip()

    rendered = ChatTemplate(source).render([{"role": "user", "content": text}] * 1000)

    assert rendered.count(text) == 2000


def test_a_failure_leaves_the_template_usable() -> None:
    """The count of loop passes belongs to one rendering, not to the template."""
    template = ChatTemplate("{% for i in range(messages[0].n) %}{% for j in range(19999) %}{% endfor %}{% endfor %}ok")

    with pytest.raises(InvalidRequestError):
        template.render([{"n": 11}])
    assert template.render([{"n": 9}]) == template.render([{"n": 9}]) == "ok"


def test_a_template_that_does_not_compile_is_the_models_fault() -> None:
    """A syntax error is found when the model is loaded, not with the first request."""
    with pytest.raises(UnsupportedModelError, match="cannot be compiled"):
        ChatTemplate("{% for %}")

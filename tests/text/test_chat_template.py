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
        ("{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}", "loops more than"),
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

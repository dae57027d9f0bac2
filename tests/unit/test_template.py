"""Chat templates render as transformers renders them, and cannot do more than that."""

import re

import pytest

from fastchat_rs.errors import TemplateError
from fastchat_rs.template import ChatTemplate

CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}"
)
USER = [{"role": "user", "content": "Hi <&'\"> ä"}]


def render(source: str, **options: object) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(USER, **options)  # pyright: ignore[reportArgumentType]


def test_blocks_are_trimmed() -> None:
    assert render(CHATML) == "<|im_start|>user\nHi <&'\"> ä<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHi <&'\"> ä<|im_end|>\n"


def test_special_tokens_are_printed() -> None:
    assert render("{{ bos_token }}{{ messages[0].role }}{{ eos_token }}") == "<s>user</s>"


def test_tojson_neither_escapes_nor_sorts() -> None:
    assert render("{{ {'b': '<ä>', 'a': [1, true, none]} | tojson }}") == '{"b": "<ä>", "a": [1, true, null]}'
    assert render("{{ {'b': 1} | tojson(indent=2) }}") == '{\n  "b": 1\n}'
    assert render("{{ [1, 2] | tojson(separators=(',', ':')) }}") == "[1,2]"


def test_loop_controls() -> None:
    skip = "{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}"
    assert render("{% for i in range(9) %}" + skip + "{{ i }}{% endfor %}") == "02"


def test_generation_blocks_are_only_their_body() -> None:
    assert render("a{% generation %}{{ messages[0].role }}{% endgeneration %}b") == "auserb"


def test_raise_exception_is_a_template_error() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_strftime_now() -> None:
    assert re.fullmatch(r"\d\d [A-Z][a-z]{2} \d{4}", render("{{ strftime_now('%d %b %Y') }}"))


def test_reasoning_is_known_under_both_names() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }};{% endfor %}")
    names = ("reasoning_content", "thinking", "reasoning")
    assert template.render([{"role": "assistant", name: "hm"} for name in names]) == "hm|hm;" * 3
    assert template.render([{"role": "assistant", "thinking": "a", "reasoning_content": "b"}]) == "a|b;"
    assert template.render([{"role": "user", "reasoning": None}]) == "|;"


def test_continue_final_message_ends_where_the_message_ends() -> None:
    messages = [*USER, {"role": "assistant", "content": "Once upon"}]
    text = ChatTemplate(CHATML).render(messages, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nOnce upon")
    stripping = CHATML.replace("message['content']", "message['content'] | trim")
    messages[-1]["content"] = "Once upon "
    assert ChatTemplate(stripping).render(messages, continue_final_message=True).endswith("assistant\nOnce upon")


def test_variables_are_those_the_template_reads() -> None:
    template = ChatTemplate(
        "{% if enable_thinking %}think{% endif %}{{ messages }}{{ bos_token }}{% set x = 1 %}{{ x }}"
    )
    assert template.variables == {"enable_thinking"}
    assert template.render([], variables={"enable_thinking": True, "messages": "no"}).startswith("think[]")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{{ 2 ** 100000000 }}",
        "{{ 'a' * 1000000000 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ 1 / 0 }}",
    ],
)
def test_hostile_templates_are_template_errors(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert "\n" not in str(caught.value)


def test_a_broken_template_is_refused_when_it_is_compiled() -> None:
    with pytest.raises(TemplateError, match="not valid"):
        ChatTemplate("{% if %}")

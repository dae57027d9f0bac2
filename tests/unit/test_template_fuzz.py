"""Any history through the repair and a template: a text, or a 400 that names a field; never anything else."""

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.messages import template_messages
from fastchat_rs.server.protocol import ChatRequest
from fastchat_rs.template import ChatTemplate

CHAT = BodyDecoder(ChatRequest)
TEMPLATES = [
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.id }} {{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }},"
    "{% endfor %}){% endfor %}{{ m.tool_call_id }};{% endfor %}",
    "{{ messages[-1].content.strip() }}{{ messages | map(attribute='role') | join('|') }}",
]
text = st.text(max_size=30)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=4,
)
call = st.fixed_dictionaries(
    {},
    optional={
        "id": text | anything,
        "type": st.just("function") | anything,
        "function": st.fixed_dictionaries({}, optional={"name": text | anything, "arguments": text | anything}),
    },
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "nobody"])},
    optional={
        "content": text | anything | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": text})),
        "name": text | anything,
        "tool_calls": st.lists(call, max_size=3) | anything,
        "function_call": st.fixed_dictionaries({"name": text, "arguments": text}) | anything,
        "tool_call_id": text | anything,
        "reasoning_content": text | anything,
    },
)


@given(st.lists(message, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_history_is_rendered_or_refused(history: list[dict[str, Any]]) -> None:
    body = msgspec.json.encode({"model": "m", "messages": history})
    try:
        messages = template_messages(CHAT.decode(body, 128).messages or [])
        for template in TEMPLATES:
            if messages:
                assert isinstance(ChatTemplate(template).render(messages), str)
    except ApiError as error:
        assert error.status == 400 and error.param

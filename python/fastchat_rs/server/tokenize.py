"""POST /v1/tokenize and /v1/detokenize, in vLLM's shapes."""

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, json_reply
from fastchat_rs.server.messages import (
    Rendering,
    chat_template,
    goes_on,
    render,
    template_messages,
    template_variables,
)
from fastchat_rs.server.protocol import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from fastchat_rs.server.receipt import tell
from fastchat_rs.server.state import Served
from fastchat_rs.server.tools import offered

_TOKENIZE = BodyDecoder(TokenizeRequest)
_DETOKENIZE = BodyDecoder(DetokenizeRequest)


async def tokenize(context: Context, request: Request) -> Reply:
    """Text or messages -> token ids."""
    body = await context.decode(request, _TOKENIZE)
    _, served = context.state.find(body.model)
    text = await _text(served, body, context.state.limits.tools)
    special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
    engine = served.bridge.engine
    ids = await served.bridge.offload(lambda: engine.encode(text, add_special_tokens=special))
    strings = [served.token(id)[0] for id in ids] if body.return_token_strs else None
    tell(request)
    return json_reply(TokenizeReply(len(ids), served.info.max_model_len, ids, strings))


async def detokenize(context: Context, request: Request) -> Reply:
    """Token ids -> text."""
    body = await context.decode(request, _DETOKENIZE)
    _, served = context.state.find(body.model)
    vocabulary = served.info.vocab_size
    if any(id >= vocabulary for id in body.tokens):
        raise bad_field("tokens", f"tokens: ids are below {vocabulary}")
    engine = served.bridge.engine
    skip = bool(body.skip_special_tokens)
    text = await served.bridge.offload(lambda: engine.decode(body.tokens, skip_special_tokens=skip))
    tell(request)
    return json_reply(DetokenizeReply(text))


async def _text(served: Served, body: TokenizeRequest, most_tools: int) -> str:
    if (body.prompt is None) == (body.messages is None):
        raise bad_field("prompt", "prompt: send exactly one of prompt and messages")
    tools = offered(body.tools, most_tools)
    if body.messages is None:
        if tools is not None:
            raise bad_field("tools", "tools: need messages, a raw prompt has no place for them", "unsupported")
        return body.prompt or ""
    template = chat_template(served)
    messages = template_messages(body.messages)
    return await render(
        served.bridge,
        template,
        messages,
        Rendering(
            template_variables(template, body.chat_template_kwargs),
            tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=goes_on(messages, body.continue_final_message, body.add_generation_prompt),
        ),
    )

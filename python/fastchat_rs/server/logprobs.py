"""Log-probabilities in the two shapes of the wire. JSON has no infinities: -inf becomes -9999."""

import codecs

from fastchat_rs.server.bridge import PromptLogprobs, TokenLogprobs
from fastchat_rs.server.protocol import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    TopLogprob,
)
from fastchat_rs.server.state import Served

_LEAST = -9999.0


def finite(logprob: float) -> float:
    """The number, or what stands for minus infinity (and for NaN, which compares false)."""
    return logprob if logprob > _LEAST else _LEAST


def chat_logprobs(served: Served, steps: list[TokenLogprobs]) -> ChatLogprobs:
    """Chat's shape, with bytes."""
    content: list[ChatTokenLogprob] = []
    for step in steps:
        token, raw = served.token(step.token_id)
        top = [TopLogprob(served.token(id)[0], finite(logprob), served.token(id)[1]) for id, logprob in step.top]
        content.append(ChatTokenLogprob(token, finite(step.logprob), raw, top))
    return ChatLogprobs(content)


class LegacyLogprobs:
    """The four lists of text completions; offsets run on over the chunks of a choice."""

    def __init__(self, served: Served, top: int) -> None:
        self._served = served
        self._top = top
        self._offset = 0
        # Offsets are of characters, of which a token may be a part.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def echo(self, token_ids: list[int], steps: list[TokenLogprobs]) -> CompletionLogprobs:
        """The prompt's part: its first token has no probability."""
        shaped = CompletionLogprobs([], [], [], [])
        if token_ids:
            self._add(shaped, token_ids[0], None)
        for step in steps:
            self._add(shaped, step.token_id, step)
        return shaped

    def more(self, steps: list[TokenLogprobs]) -> CompletionLogprobs:
        """The next steps."""
        shaped = CompletionLogprobs([], [], [], [])
        for step in steps:
            self._add(shaped, step.token_id, step)
        return shaped

    def _add(self, shaped: CompletionLogprobs, token_id: int, step: TokenLogprobs | None) -> None:
        token, raw = self._served.token(token_id)
        shaped.tokens.append(token)
        shaped.text_offset.append(self._offset)
        self._offset += len(self._decoder.decode(bytes(raw)))
        if step is None:
            shaped.token_logprobs.append(None)
            shaped.top_logprobs.append(None)
            return
        shaped.token_logprobs.append(finite(step.logprob))
        top = {self._served.token(id)[0]: finite(logprob) for id, logprob in step.top} if self._top else {}
        top.setdefault(token, finite(step.logprob))
        shaped.top_logprobs.append(top)


def joined(parts: list[CompletionLogprobs]) -> CompletionLogprobs:
    """Pieces of one choice as one."""
    whole = CompletionLogprobs([], [], [], [])
    for part in parts:
        whole.text_offset += part.text_offset
        whole.token_logprobs += part.token_logprobs
        whole.tokens += part.tokens
        whole.top_logprobs += part.top_logprobs
    return whole


def prompt_logprobs(served: Served, logprobs: PromptLogprobs) -> list[dict[str, PromptLogprob] | None]:
    """vLLM's shape: per prompt token its candidates by id; the first token has none."""
    shaped: list[dict[str, PromptLogprob] | None] = [None]
    for step in logprobs.tokens:
        row = {
            str(id): PromptLogprob(finite(logprob), rank, served.token(id)[0])
            for rank, (id, logprob) in enumerate(step.top, start=1)
        }
        row[str(step.token_id)] = PromptLogprob(finite(step.logprob), step.rank, served.token(step.token_id)[0])
        shaped.append(row)
    return shaped

"""Counts the tokens of one request over its prompts and choices."""

from collections.abc import Callable

from fastchat_rs.server.bridge import Delta
from fastchat_rs.server.protocol import CompletionTokensDetails, PromptTokensDetails, Usage


class UsageCounter:
    """Fed with every delta; a prompt shared by n choices counts once."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self.only_prompt = False
        """Set when the client asked for no tokens at all."""
        self.reasoning: Callable[[], int] = int
        """Tokens of thoughts so far; the route knows which they are."""
        self._completion: dict[tuple[int, int], int] = {}
        self._cached: dict[int, int] = {}

    def add(self, prompt: int, delta: Delta) -> None:
        """Takes the counts a delta carries."""
        self._completion[prompt, delta.index] = delta.completion_tokens
        self._cached[prompt] = max(self._cached.get(prompt, 0), delta.cached_tokens)

    @property
    def begun(self) -> bool:
        """Whether the engine has read a prompt and written something."""
        return bool(self._completion)

    @property
    def completion_tokens(self) -> int:
        """Tokens written so far."""
        return 0 if self.only_prompt else sum(self._completion.values())

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return sum(self._cached.values())

    @property
    def prompt_tokens(self) -> int:
        """Tokens read."""
        return self._prompt_tokens

    def usage(self) -> Usage:
        """The wire's object."""
        completion = self.completion_tokens
        return Usage(
            self._prompt_tokens,
            completion,
            self._prompt_tokens + completion,
            PromptTokensDetails(self.cached_tokens),
            CompletionTokensDetails(min(self.reasoning(), completion)),
        )

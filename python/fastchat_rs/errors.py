"""Errors of the Python layer. What the engine raises is `EngineError` (see `_engine.pyi`)."""


class FastchatError(Exception):
    """Base of the errors below; the message is one line for the user and names the thing that is wrong."""


class ConfigError(FastchatError):
    """A setting is unknown, has a wrong type, or is out of range."""


class ModelNotFoundError(FastchatError):
    """A model is neither a path, nor a demo name, nor a Hugging Face id that can be had."""


class TemplateError(FastchatError):
    """The model has no chat template, or its template refused the messages."""

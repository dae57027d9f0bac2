"""The HTTP server: RSGI on granian, OpenAI's words on the wire. Knows the engine only through `bridge.py`."""

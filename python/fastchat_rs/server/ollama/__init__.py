"""Ollama's API, put into the chat route's words and back."""

"""OpenAI's responses API, put into the chat route's words and back."""

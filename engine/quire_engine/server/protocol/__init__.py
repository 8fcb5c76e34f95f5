"""OpenAI's requests and answers as pydantic models, with vLLM's extra fields: a file for each API."""

"""What is decided about an LLMService before anything is built for it."""

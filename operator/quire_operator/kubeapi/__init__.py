"""The Kubernetes API over aiohttp: one thin client that counts its calls, and a list+watch."""

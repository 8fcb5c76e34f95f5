"""GET /: a chat with the model in one page, which loads nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from starlette.responses import HTMLResponse


def chat_page() -> HTMLResponse:
    """The page, with a policy under which a browser runs nothing but its script and calls nobody but this server."""
    text = resources.files(__package__).joinpath("chat_page.html").read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _digest(text, "script"),
        "style-src": _digest(text, "style"),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-cache",  # the next release has another page
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(text, headers=headers)


def _digest(text: str, tag: str) -> str:
    """How a policy names the one element of the kind: by its content (Content Security Policy 3, section 2.3.1)."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

"""The answers of /health, /version and /load."""

from __future__ import annotations

from pydantic import BaseModel


class Health(BaseModel):
    status: str


class Version(BaseModel):
    version: str


class Load(BaseModel):
    server_load: int

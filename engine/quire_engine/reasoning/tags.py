"""What a model thinks before it answers, between two tags."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningTags:
    """`begun` says that answers begin inside: the template, or the model's training, has put the start tag before."""

    start: str
    end: str
    begun: bool = False

    def begun_by(self, prompt: str) -> bool:
        """Whether an answer to a prompt that ends so begins inside."""
        return prompt.rstrip().endswith(self.start) or (self.begun and not self.ended_by(prompt))

    def ended_by(self, prompt: str) -> bool:
        """Whether a prompt that ends so has an empty reasoning, and its answer none."""
        return prompt.rstrip().endswith(self.end)


TAGS = {
    "deepseek_r1": ReasoningTags("<think>", "</think>", begun=True),
    "deepseek_v3": ReasoningTags("<think>", "</think>"),
    "glm45": ReasoningTags("<think>", "</think>"),
    "glm47": ReasoningTags("<think>", "</think>"),
    "granite": ReasoningTags("Here is my thought process:", "Here is my response:"),
    "minimax_m2": ReasoningTags("<think>", "</think>", begun=True),
    "mistral": ReasoningTags("[THINK]", "[/THINK]"),
    "olmo3": ReasoningTags("<think>", "</think>", begun=True),
    "qwen3": ReasoningTags("<think>", "</think>"),
    "seed_oss": ReasoningTags("<seed:think>", "</seed:think>", begun=True),
    "step3": ReasoningTags("<think>", "</think>", begun=True),
}
"""By the names that vLLM gives their parsers."""

"""Models that answer: loading, prompts made of messages, conversations."""

from archsearch.serve.chat import Chat
from archsearch.serve.load import drawn
from archsearch.serve.load import is_checkpoint
from archsearch.serve.load import pretrained
from archsearch.serve.messages import Message

__all__ = ["Chat", "Message", "drawn", "is_checkpoint", "pretrained"]

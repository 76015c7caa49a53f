"""Synthetic actor: a computer-generated talking head, rendered with known head states."""

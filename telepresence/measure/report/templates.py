"""Jinja templates of the report, with autoescape: text from files and recordings never becomes markup."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)


def render_template(name: str, **values: Any) -> Markup:
    """Fill a template of this folder; the result can be put into another template without being escaped again."""
    return Markup(_environment().get_template(name).render(**values))  # noqa: S704 - escaped by the template

"""Pages in one HTML file, readable without a server or a network. All have the style of ``page.html``."""

import base64
from pathlib import Path

import jinja2

FOLDER = Path(__file__).parent  # of page.html and macros.html


def template(path: Path) -> jinja2.Template:
    """Return the template in a file. It can extend ``page.html`` and import from ``macros.html``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, FOLDER]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters['base64'] = lambda data: base64.b64encode(data).decode()
    return environment.get_template(path.name)

"""What is wrong with a page that has to stand alone."""

from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "col", "input", "!doctype"}
_BESIDE = ("predictions.csv", "localisation.json")  # files that the page links to


class Page(HTMLParser):
    """A page, read strictly.

    Attributes:
        faults: what is wrong with it.
        tags: number of each element.
        text: all that is to be read.
    """

    def __init__(self, page):
        super().__init__()
        self.faults, self.tags, self.text = [], {}, ""
        self._open, self._ids, self._links = [], set(), set()
        self.feed(page)
        self.close()
        self.faults += [f"never closed: {tag}" for tag in self._open]
        self.faults += [f"no target: {link}" for link in self._links - self._ids]

    def handle_starttag(self, tag, attrs):
        self._seen(tag, dict(attrs))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._seen(tag, dict(attrs))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not self._open or self._open[-1] != "style":
            self.text += data
        elif "url(" in data or "@import" in data:
            self.faults.append("the style asks for a file")

    def _seen(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag in ("script", "iframe", "object", "embed", "base"):
            self.faults.append(f"<{tag}>")
        if tag == "img" and not attributes.get("alt"):
            self.faults.append("an image without alt text")
        if tag == "svg" and not attributes.get("aria-label"):
            self.faults.append("a figure without label")
        if "id" in attributes:
            if attributes["id"] in self._ids:
                self.faults.append(f"twice: id {attributes['id']}")
            self._ids.add(attributes["id"])
        for name, value in attributes.items():
            self._attribute(name, value or "")

    def _attribute(self, name, value):
        if name.startswith("on"):
            self.faults.append(f"a handler: {name}")
        if name in ("href", "src", "srcset", "data", "action"):
            if value.startswith("#"):
                self._links.add(value[1:])
            elif not value.startswith("data:") and value not in _BESIDE:
                self.faults.append(f"outside: {value[:60]}")
        if "url(" in value:
            self._links.add(value.split("url(#")[1].split(")")[0])

"""A page as a test reads it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page shows and refers to, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.text, self.tags = [], [], "", set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.tags.add(tag)
        self.text += " "
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

"""Dead links and pictures without a text in the rendered site. Quarto runs this at the end; by hand it is
`python tests/rendered.py FOLDER`."""
import os, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse


class Page(HTMLParser):
    "The anchors and links of a page, and its pictures without a text."
    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.silent = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get('id'): self.anchors.add(attrs['id'])
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag == 'img' and not attrs.get('alt'): self.silent.append((attrs.get('src') or '')[:60])


def target(root, page, link):
    "The file and the anchor that `link` on `page` means; None where it leads elsewhere."
    parts = urlparse(link)
    if parts.scheme or parts.netloc: return None
    path = unquote(parts.path)
    if not path: return page, parts.fragment
    file = root/path.lstrip('/') if path.startswith('/') else page.parent/path
    return Path(os.path.normpath(file/'index.html' if file.is_dir() else file)), parts.fragment


def faults(folder):
    "What is wrong with the pages in `folder`, a line each."
    root = Path(folder).resolve()
    pages = {path: Page(path.read_text(encoding='utf-8')) for path in sorted(root.rglob('*.html'))}
    for path, page in pages.items():
        name = path.relative_to(root).as_posix()
        for link in page.links:
            if (found := target(root, path, link)) is None: continue
            file, anchor = found
            if not file.exists(): yield f'{name}: {link} leads nowhere'
            elif anchor and file in pages and anchor not in pages[file].anchors:
                yield f'{name}: {link} has no such anchor'
        yield from (f'{name}: a picture without a text: {source}' for source in page.silent)


if __name__ == '__main__': # it tells and does not fail: a page with a dead link is still a page
    folder = sys.argv[1] if len(sys.argv) > 1 else os.environ.get('QUARTO_PROJECT_OUTPUT_DIR', '_docs')
    found = list(faults(folder))
    print(*found, f'{len(found)} faults in the rendered pages', sep='\n')

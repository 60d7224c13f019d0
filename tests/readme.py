"README.md and its pictures, made from nbs/index.ipynb: `python -m tests.readme` writes them."
import base64, json, re, textwrap
from pathlib import Path
from posixpath import normpath

ROOT = Path(__file__).parent.parent
COLUMNS = 88 # of an output; longer lines are wrapped


def text(lines): return lines if isinstance(lines, str) else ''.join(lines)


def source(cell):
    "The directives of a cell, such as `hide`, and the text below them."
    lines = text(cell['source']).strip('\n').split('\n')
    n = next((i for i, line in enumerate(lines) if not line.startswith('#|')), len(lines))
    return {line[2:].strip() for line in lines[:n]}, '\n'.join(lines[n:]).strip('\n')


def fence(body, language=''): return f'```{language}\n{body.rstrip()}\n```'


def wrapped(output):
    "The lines of an output, the long ones as several."
    lines = [re.sub(r'\x1b\[[\d;]*m', '', line) for line in output.rstrip().split('\n')]
    def parts(line):
        indent = line[:len(line) - len(line.lstrip())] + '    '
        return textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return '\n'.join('\n'.join(parts(line)) if len(line) > COLUMNS else line for line in lines)


def relinked(markdown):
    "`markdown` with its links, which are relative to nbs, relative to the top folder; code blocks are left alone."
    def link(match):
        before, target, after = match.groups()
        if re.match(r'[a-z]+:|[#/]', target): return match[0]
        return before + normpath('nbs/' + target) + after
    parts = re.split(r'(^```.*?^```)', markdown, flags=re.M | re.S)
    target = re.compile(r'(\]\(|(?:src|href)=")([^)"\s]+)([)"\s])')
    return ''.join(p if p.startswith('```') else target.sub(link, p) for p in parts)


def outputs(cell, pictures):
    "The outputs of a code cell as markdown; a picture becomes a file in `pictures` and a link to it."
    for output in cell['outputs']:
        data = output.get('data', {})
        png, svg = data.get('image/png'), data.get('image/svg+xml')
        if output.get('name') == 'stdout': yield fence(wrapped(text(output['text'])))
        elif png or svg:
            path = f'nbs/images/{cell["id"]}{len(pictures)}.' + ('png' if png else 'svg')
            pictures[path] = base64.b64decode(text(png)) if png else text(svg).encode()
            yield f'![]({path})'
        elif 'text/markdown' in data: yield relinked(text(data['text/markdown'])).strip('\n')
        elif 'text/plain' in data: yield fence(wrapped(text(data['text/plain'])))


def readme():
    "The text of README.md, and the pictures in it by path."
    parts, pictures = [], {}
    for cell in json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']:
        directives, body = source(cell)
        if 'hide' in directives or not body or body.startswith('---\n') or cell['cell_type'] == 'raw': continue
        if cell['cell_type'] == 'markdown': parts.append(relinked(body))
        else: parts += [fence(body, 'python'), *outputs(cell, pictures)]
    return '\n\n'.join(parts) + '\n', pictures


if __name__ == '__main__':
    markdown, pictures = readme()
    for path, data in {'README.md': markdown.encode(), **pictures}.items():
        (ROOT/path).parent.mkdir(exist_ok=True)
        (ROOT/path).write_bytes(data)

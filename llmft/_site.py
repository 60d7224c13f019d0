"""How notebooks become pages of the site: `[tool.nbdev]` in pyproject.toml names the processor below.

nbdev leaves exported code out of its pages. Here it stays, folded, so that a reader sees what the prose explains."""
import ast, re

_EXPORTS = ('export', 'exporti')


def _statements(cell):
    "The top-level statements of a code cell; a cell that is not Python has none."
    try: return ast.parse(cell.source).body
    except SyntaxError: return []


def _only_imports(cell):
    body = _statements(cell)
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def _is_prose(cell): return cell.cell_type == 'markdown' and not cell.source.startswith('<!--')


def _is_doc(cell): return cell.cell_type == 'code' and 'show_doc(' in cell.source


def _is_data_class(cell):
    "Is this the table of a pydantic class? Its signature says nothing, and its keys have a page of their own."
    return '(**data: Any)' in str(cell.get('outputs', ''))


def _fold(cell, summary):
    "Let Quarto show the code of `cell` only when a reader opens it."
    code = re.sub(r'^#\| *(export|exporti)\b.*\n', '', cell.source, flags=re.M)
    cell.source = f'#| code-fold: true\n#| code-summary: "{summary}"\n{code}'


def _plain(text): return re.sub(r'\b__main__\.', '', text)


def _clean_doc(cell):
    "Names in a signature as a reader would import them."
    for output in cell.get('outputs', []):
        for kind, text in output.get('data', {}).items():
            output['data'][kind] = [_plain(t) for t in text] if isinstance(text, list) else _plain(text)


class FoldCode:
    "Exported code and imports, folded; each definition below its documentation; no page begins with imports."
    def __init__(self, nb): self.nb = nb

    def begin(self):
        pages, waiting = [], []
        for cell in self.nb.cells:
            kind = self._kind(cell)
            if kind == 'left out': continue
            if kind == 'imports' and not any(map(_is_prose, pages)): waiting.append(cell)
            elif kind == 'documentation' and pages and getattr(pages[-1], 'is_definition', False):
                pages.insert(-1, cell) # above the folded code
            else:
                if cell.cell_type == 'code' and waiting: pages, waiting = pages + waiting, []
                pages.append(cell)
        self.nb.cells = pages + waiting

    def _kind(self, cell):
        if cell.cell_type != 'code': return 'prose'
        directives = getattr(cell, 'directives_', {})
        exported = any(name in directives for name in _EXPORTS)
        if 'default_exp' in directives or exported and _only_imports(cell): return 'left out'
        if exported:
            cell.is_definition = True
            _fold(cell, 'Code')
            return 'definition'
        if _is_doc(cell):
            if _is_data_class(cell): return 'left out'
            _clean_doc(cell)
            return 'documentation'
        if _only_imports(cell):
            _fold(cell, 'Imports')
            return 'imports'
        if cell.get('id') == 'install': _fold(cell, 'Install')
        return 'example'

    def __call__(self, cell): pass


def reference_rows(rows, header=('key', 'default', 'meaning'), prefix=''):
    """HTML for rows of (name, default, meaning) under a header; the last two are Markdown.

    Each row is a section with the name as its heading: Quarto's search then finds `lora_r` as a title of its own.
    Its anchor is the name, behind `prefix` and without signs that an address cannot hold."""
    from html import escape
    from markdown_it import MarkdownIt
    inline = MarkdownIt().renderInline
    def section(name, default, meaning):
        anchor = prefix + re.sub(r'[^\w.-]+', '-', name).strip('-')
        breakable = escape(name).replace('_', '_<wbr>') # a long name wraps between its words
        cells = f'<h2><code>{breakable}</code></h2><div>{inline(default)}</div><div>{inline(meaning)}</div>'
        return f'<section id="{escape(anchor)}" class="level2">{cells}</section>'
    head = ''.join(f'<div>{escape(title)}</div>' for title in header)
    return f'<div class="rows"><div class="rows-head">{head}</div>{"".join(section(*row) for row in rows)}</div>'

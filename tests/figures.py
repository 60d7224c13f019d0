"""How long the exported code is and how well it is shown: `python -m tests.figures`.

With notebooks behind it, their cells that are too long or not shown are listed.

Only cells that are exported count. A cell's lines are those without its directives and without empty ones around it.
A cell *defines* where it holds a function or a class; it is *shown* if the next code cell is not exported and uses one
of its names, and so says at once what the definition does."""
import ast, json, re, sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
MAX_COLUMNS, MAX_LINES, MEDIAN_LINES, SHOWN_SHARE = 120, 30, 10, .95


@dataclass
class Cell:
    notebook: str
    id: str
    lines: list    # its code
    defines: list  # names of its functions and classes; of a patched method the method's
    shown: bool    # the next code cell uses one of them

    @property
    def long_lines(self): return [line for line in self.lines if len(line) > MAX_COLUMNS]

    def __str__(self):
        faults = [f'{len(self.long_lines)} long lines'] * bool(self.long_lines)
        faults += [f'{len(self.lines)} lines'] * (len(self.lines) > MAX_LINES)
        faults += ['not shown'] * (bool(self.defines) and not self.shown)
        return f'{self.notebook} #{self.id} {", ".join(self.defines)[:60]}: {"; ".join(faults) or "ok"}'


def is_exported(source): return bool(re.match(r'\s*#\|\s*exports?\b', source))


def code_lines(source): return re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n').split('\n')


def defined(source):
    found = [n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    return [n.name for n in found]


def used_names(name):
    "The words by which a definition is called; the special methods of a class by what calls them."
    special = {'__str__': ['print', 'str'], '__repr__': ['repr'], '_repr_markdown_': [], '_repr_html_': []}
    return special.get(name, [name])


def uses(source, names):
    if any(not used_names(name) for name in names): return True # what a notebook calls to show a value
    return any(re.search(rf'\b{re.escape(word)}\b', source) for name in names for word in used_names(name))


def exported_cells(path):
    "The exported cells of the notebook at `path`."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    ids = [cell['id'] for cell in cells if cell['cell_type'] == 'code']
    for id, source, after in zip(ids, sources, [*sources[1:], '']):
        if not is_exported(source): continue
        names = defined(source)
        shown = bool(after) and not is_exported(after) and uses(after, names)
        yield Cell(path.relative_to(ROOT/'nbs').as_posix(), id, code_lines(source), names, shown)


def notebooks():
    paths = (ROOT/'nbs').rglob('*.ipynb')
    return sorted(p for p in paths if not any(part[0] in '._' for part in p.relative_to(ROOT).parts))


def all_cells(): return [cell for path in notebooks() for cell in exported_cells(path)]


def figures(cells):
    "What is asked of the exported cells together."
    defining = [cell for cell in cells if cell.defines]
    return {
        'cells': len(cells),
        'lines': sum(len(cell.lines) for cell in cells),
        'longest line': max(len(line) for cell in cells for line in cell.lines),
        'lines over 120': sum(len(cell.long_lines) for cell in cells),
        'median lines of a cell': median(len(cell.lines) for cell in cells),
        'longest cell': max(len(cell.lines) for cell in cells),
        'defining cells': len(defining),
        'shown at once': sum(cell.shown for cell in defining),
        'share shown': round(sum(cell.shown for cell in defining) / max(len(defining), 1), 3),
    }


if __name__ == '__main__':
    chosen = [Path(a).resolve() for a in sys.argv[1:]]
    for path in chosen:
        for cell in exported_cells(path):
            if not str(cell).endswith(': ok'): print(cell)
    cells = [cell for path in chosen for cell in exported_cells(path)] if chosen else all_cells()
    for name, value in figures(cells).items(): print(f'{name:24} {value:>10,}')

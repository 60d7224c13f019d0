import subprocess, sys
from pathlib import Path
import yaml

ROOT = Path(__file__).parent.parent


def pages(contents):
    for entry in contents:
        if isinstance(entry, str): yield entry
        else: yield from pages(entry['contents'])


def test_sidebar_lists_every_notebook():
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    notebooks = [p.relative_to(ROOT/'nbs') for p in (ROOT/'nbs').rglob('*.ipynb')]
    notebooks = [p.as_posix() for p in notebooks if not any(part[0] in '._' for part in p.parts)]
    assert sorted(pages(site['website']['sidebar']['contents'])) == sorted(notebooks)


def test_notebooks_become_pages():
    "What `nbdev-docs` does before Quarto: it runs the exported cells and each cell with an import on its own."
    code = 'from nbdev.serve import proc_nbs; proc_nbs(n_workers=2, force=True)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
